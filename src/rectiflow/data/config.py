"""Settings of training data. Never imports torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError

SetName = Literal["digits", "digit-scenes", "digit-clips", "folder", "shards"]
BUILTIN = ("digits", "digit-scenes", "digit-clips")
CLIP_RATE = 10  # frames a second of a built-in set's clips in files: whole hundredths of a second, as a gif has them


class DataConfig(Config):
    """What to train on. All after `dequantise` but `flip` and `workers` concerns folders and shards alone.

    Args:
        set: a built-in set, "folder", or "shards": parquet files or tars, read where they lie.
        dequantise: width, in grey levels, of uniform noise added to each pixel; 0 is none, 1 fills the gaps between
            levels.
        flip: mirror half of the training pictures, left to right.
        workers: processes that decode ahead; None is half the cores, 0 decodes in the training process.
        dir: the folder of pictures.
        shards: with set=shards, the files ending in .parquet or .tar: paths or fsspec URLs (s3://, hf://, https://, …)
            with * and {0000..0127} for several.
        window: pieces of shards, ≥ 1, whose rows are mixed together in an epoch; a piece is a tar, or row groups of a
            parquet file of 16 MB together. Greater mixes better and holds more of parquet in memory.
        source_dir: the folder of the pictures that a bridge starts from (flow.source=pictures), read as those of `dir`
            are, without their classes.
        size: height and width in pixels, one number for a square; None is the size that all pictures have.
        crop: what is done with pictures of another shape: "center", "random" (a new place each time), or "none": each
            must have the proportions of `size` within 2 %.
        scale: with crop=random, least and most, > 0, of the picture's own pixels to a pixel of the crop: (0.5, 1) takes
            crops of pictures at half to full resolution, as long as they cover `size`; None shrinks each picture until
            it just covers it.
        filter: how pictures are resized, antialiased.
        colour: "rgb", "grey", or "auto": grey if every picture is.
        background: colour behind transparent pixels, a name or #rrggbb.
        labels: "folders" (the name of the class folder; of shards none), "none", or a column of the metadata or of a
            parquet file; in a tar a member such as cls, or a field of the json member.
        caption: column of the metadata that holds captions, a string or a list of them; in a tar as for `labels`.
        held_out: share of the pictures kept from training, by their content, so that equal files stay together;
            folders named train and val, validation or test decide by themselves. Of shards by a draw for each row.
        check: "decode" reads each picture whole before training, "header" its head alone, and of shards nothing.
        max_skipped: share of the pictures found that may be unusable.
        max_aspect: longest side over shortest, beyond which a crop would not serve.
        buckets: shapes at most among which pictures are spread by their proportions, each of about the area of `size`,
            so that little is cropped away; each batch has one shape. 1 is none but `size`.
        multiple: of which the sides of all buckets are whole multiples: the network's patch, times the factor of the
            autoencoder.
        smallest_bucket: pictures to train on below which a bucket is merged with the nearest.
        frames: T of a clip, 1 + 4k; 1 is pictures.
        rate: frames a second at which a clip is sampled, > 0; None is each file's own.
        stills: share of the steps of training whose batch is of single frames, in [0, 1]; only if `frames` > 1.
    """

    set: SetName = "digits"
    dequantise: float = Field(0.0, ge=0, le=1)
    flip: bool = False
    workers: int | None = Field(None, ge=0)
    dir: str = ""
    shards: tuple[str, ...] = ()
    window: int = Field(8, ge=1)
    source_dir: str = ""
    size: int | tuple[int, int] | None = None
    crop: Literal["center", "random", "none"] = "center"
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    filter: Literal["lanczos", "bicubic", "bilinear", "box"] = "lanczos"
    colour: Literal["auto", "rgb", "grey"] = "auto"
    background: str = "white"
    labels: str = "folders"
    caption: str = "text"
    held_out: float = Field(0.05, ge=0, lt=1)
    check: Literal["decode", "header"] = "decode"
    max_skipped: float = Field(0.1, ge=0, le=1)
    max_aspect: float = Field(3.0, ge=1)
    buckets: int = Field(1, ge=1)
    multiple: int = Field(8, ge=1)
    smallest_bucket: int = Field(64, ge=1)
    frames: int = Field(1, ge=1)
    rate: float | None = Field(None, gt=0)
    stills: float = Field(0.2, ge=0, le=1)

    @field_validator("shards", mode="before")
    @classmethod
    def _one_is_enough(cls, shards: object) -> object:
        return (shards,) if isinstance(shards, str) else shards

    @model_validator(mode="after")
    def _shards_fit(self) -> Self:
        if (self.set == "shards") != bool(self.shards):
            raise ValueError("set=shards and shards=[…], the files, go together; give both or neither")
        if self.shards and (self.dir or self.frames > 1):
            other = "dir" if self.dir else f"frames={self.frames}"
            raise ValueError(f"shards hold pictures, and do not go with {other}; leave it out, or use set=folder")
        return self

    @model_validator(mode="after")
    def _size_is_positive(self) -> Self:
        if self.size is not None and min(self.height_width) < 1:
            raise ValueError(f"size must be at least 1, received {self.size}")
        return self

    @model_validator(mode="after")
    def _scale_fits(self) -> Self:
        if self.scale is not None and (self.crop != "random" or self.scale[0] > self.scale[1]):
            raise ValueError(f"scale {self.scale} needs crop=random, and its least before its most")
        return self

    @model_validator(mode="after")
    def _buckets_fit(self) -> Self:
        if self.buckets > 1 and (self.set != "folder" or self.size is None):
            raise ValueError(f"buckets={self.buckets} are for a folder of pictures, and need a size: the area of each")
        if self.buckets > 1 and (self.crop == "none" or self.scale is not None or self.source_dir):
            other = "source_dir" if self.source_dir else "scale" if self.scale else "crop=none"
            raise ValueError(f"buckets={self.buckets} do not go with {other}; leave out one of them")
        return self

    @field_validator("frames")
    @classmethod
    def _frames_fit(cls, frames: int) -> int:
        if (frames - 1) % 4:
            nearest = 1 + 4 * round((frames - 1) / 4)
            raise ValueError(f"a clip has 1 + 4k frames (1, 5, 9, 13, 17, …), the nearest is {nearest}")
        return frames

    @model_validator(mode="after")
    def _clips_fit(self) -> Self:
        other = "buckets" if self.buckets > 1 else "source_dir" if self.source_dir else ""
        if self.frames > 1 and other:
            raise ValueError(f"clips (frames={self.frames}) do not go with {other}; leave out one of them")
        return self

    def refuse_buckets(self, what: str) -> None:
        """Nothing, if all batches have one shape.

        Args:
            what: that which needs it, in the plural.

        Raises:
            InputError: they have not.
        """
        if self.buckets > 1:
            raise InputError(f"{what} have one shape, but data.buckets is {self.buckets}; set data.buckets=1.")

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width asked for; only if `size` is given."""
        assert self.size is not None
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class LatentsConfig(Config):
    """The latents of a set as they are kept on disk, for training in an autoencoder's latents.

    Args:
        dir: latents encoded before; empty is the run's own.
        dtype: 16 bits in which moments are kept: float16 has 11 significant bits up to 65,504, bfloat16 8 bits and no
            such bound.
        variants: versions kept of each training picture, V: first the plain centre crop, with `data.flip` then its
            mirror, then random crops (`data.crop=random`) and mirrors. Held-out pictures have one.
        seed: of the random crops and mirrors, and of the noise of `data.dequantise`.
        shard: pictures in a file, all their versions together.
        batch: pictures encoded at once.
    """

    dir: str = ""
    dtype: Literal["float16", "bfloat16"] = "float16"
    variants: int = Field(1, ge=1)
    seed: int = 0
    shard: int = Field(1024, ge=1)
    batch: int = Field(32, ge=1)

    def refuse_copies(self, data: DataConfig) -> None:
        """Nothing, if the versions of a picture differ.

        Raises:
            InputError: more are asked for than `data` gives different ones.
        """
        folder, different = data.set not in BUILTIN, 2 if data.flip else 1
        if self.variants <= different or data.dequantise or (folder and data.crop == "random"):
            return
        raise InputError(
            f"latent.cache.variants={self.variants} would keep equal copies: with data.crop={data.crop} and "
            f"data.flip={str(data.flip).lower()} a picture has {different} version{'s' if different > 1 else ''}; set "
            f"latent.cache.variants={different}{', or data.crop=random' if folder else ''}."
        )
