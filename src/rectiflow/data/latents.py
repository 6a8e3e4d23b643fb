"""Latents of a set on disk: what a folder of them is, and its reading. `encode` writes it.

    FOLDER/latents.json                    the manifest, written last
    FOLDER/train-00000.arrow, …            Arrow streams of a column `moments` of fixed-size lists
    FOLDER/train-00000.json, …             what the shard holds, and its sums: by these an encoding goes on
    FOLDER/held_out-00000.arrow, .json, …
    FOLDER/stills-00000.arrow, .json, …    of pictures beside clips to train on, if there are any

Row i·V + v holds version v of picture i: C′ means, then C′ log-variances, of h×w each (of a clip T′×h×w, as
`LatentSpace.stored_moments` has them), as float16, or as the 16 bits of a bfloat16 in an int16. Shards are mapped from
disk, so that their pages are the system's to keep or to drop.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from datasets import Dataset
from pydantic import ValidationError
from torch import Tensor

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256
from rectiflow.data.config import BUILTIN, DataConfig, LatentsConfig
from rectiflow.data.images import Images, ImageSet
from rectiflow.data.table import Listed

FORMAT = 1
MANIFEST = "latents.json"
COLUMN = "moments"
_ROWS = 4096
# Beyond this many bytes, shards are known by their sizes alone: to read them all would hold up every start.
_READ_WHOLE = 2**30
_CLAUSES = {
    "autoencoder": "was made by another autoencoder ({theirs}; this run's is {mine})",
    "pictures": "was made of other pictures ({theirs}; this run's are {mine})",
    "transform": "was made of pictures prepared otherwise ({theirs}; this run's: {mine})",
    "dtype": "holds {theirs} (this run's latent.cache.dtype is {mine})",
    "format": "has format {theirs} (this release's is {mine})",
}


class Shard(Config):
    """One file.

    Args:
        name: of the file.
        pictures: in it, each in all its versions.
        bytes: its size.
        sha256: of its bytes, hexadecimal.
    """

    name: str
    pictures: int
    bytes: int
    sha256: str


class Part(Config):
    """The pictures to train on, or those held out: how many, and in which files, in order."""

    pictures: int
    shards: tuple[Shard, ...]


class Manifest(Config):
    """What a folder of latents holds.

    Args:
        format: of the folder.
        fingerprint: see `fingerprint`.
        shape: 2C′, h, w of the moments of one picture; 2C′, T′, h, w of those of a clip.
        dtype: in which they are kept.
        variants: versions of each training picture, V.
        train: the pictures to train on.
        held_out: the others, in one version.
        stills: the pictures beside the clips to train on, of T′ = 1, in V versions; None if there are none.
        mean: of each of the C′ latent channels over the training part: E[m].
        deviation: the same of latents drawn from their posteriors: √(Var[m] + E[s²]).
    """

    format: int
    fingerprint: dict[str, str]
    shape: tuple[int, ...]
    dtype: Literal["float16", "bfloat16"]
    variants: int
    train: Part
    held_out: Part
    stills: Part | None = None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All files."""
        parts = (self.train, self.held_out, self.stills)
        return tuple(shard for part in parts if part is not None for shard in part.shards)


@final
class Latents(Images):
    """Moments of a posterior for each picture, B×2C′×h×w (`Posterior.of`), mapped from disk; for each clip
    B×2C′×T′×h×w.

    Args:
        blocks: int16 rows×2C′×h×w each, together the rows of the part; not copied.
        pixels: the pictures they were made of, for labels and captions.
        shape: 2C′, h, w, or of clips 2C′, T′, h, w.
        dtype: torch.float16 or torch.bfloat16, which the 16 bits mean.
        variants: versions of each picture, V.
    """

    prepared = True

    def __init__(
        self,
        blocks: Sequence[np.ndarray],
        pixels: Images,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        variants: int,
    ) -> None:
        self.shape, self.labels, self.dtype, self.variants = shape, pixels.labels, dtype, variants
        self._blocks, self._pixels, self.captioned = blocks, pixels, pixels.captioned
        self._starts = np.cumsum([0, *(len(block) for block in blocks)])[:-1]

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """float32 moments of the pictures at `index`.

        Args:
            index: which, int64 B in [0, N).
            place: B×3 in [0, 1], of which the first number chooses version ⌊V·place⌋; None is version 0.
        """
        assert not len(index) or (int(index.min()) >= 0 and int(index.max()) < len(self))
        rows = index.numpy() * self.variants
        if place is not None:
            rows = rows + (place[:, 0] * self.variants).long().clamp(max=self.variants - 1).numpy()
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        bits = np.empty((len(rows), *self.shape), dtype=np.int16)
        for out, number, row in zip(bits, numbers.tolist(), rows.tolist(), strict=True):
            out[...] = self._blocks[number][row - self._starts[number]]
        return torch.from_numpy(bits).view(self.dtype).float()

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The captions of the pictures at `index`."""
        return self._pixels.captions(index, choice)

    def every_caption(self) -> Iterator[str]:
        """All captions of all pictures."""
        return self._pixels.every_caption()


def fingerprint(
    autoencoder_sha256: str, data: ImageSet, data_config: DataConfig, config: LatentsConfig
) -> dict[str, str]:
    """What latents depend on, by name; two runs with equal ones may share a folder.

    A folder's pictures are known by path, class, part and size, not by their content: a file that is replaced by
    another of equal height and width goes unnoticed.

    Args:
        autoencoder_sha256: of the encoder's weights.
        data: the pictures.
        data_config: how they are prepared; what has no effect on the set is left out.
        config: variants, seed, dtype.
    """
    folder, random = data_config.set not in BUILTIN, config.variants > 1
    height, width = data.size
    transform = {"size": f"{height}×{width}", "channels": data.shape[0], "variants": config.variants}
    if len(data.shape) == 4:
        transform["frames"] = data.shape[1]
        if folder and data_config.rate is not None:
            transform["rate"] = f"{data_config.rate:g}"
    transform["dequantise"] = f"{data_config.dequantise:g}"
    if folder:
        transform |= {"filter": data_config.filter, "background": data_config.background}
    if folder and random:
        transform["crop"] = "random" if data_config.crop == "random" else "center"
    if data_config.scale is not None:
        transform["scale"] = f"{data_config.scale[0]:g}-{data_config.scale[1]:g}"
    if random:
        transform["flip"] = data_config.flip
    if random or data_config.dequantise:
        transform["seed"] = config.seed
    return {
        "autoencoder": autoencoder_sha256,
        "pictures": f"{data_config.set}: {len(data.train)} and {len(data.held_out)} held out{_digest(data)}",
        "transform": ", ".join(f"{name}={value}" for name, value in transform.items()),
        "dtype": config.dtype,
        "format": str(FORMAT),
    }


def _digest(data: ImageSet) -> str:
    """Of a folder's table of pictures or clips, or of shards; a built-in set has none and is known by its name."""
    parts = [part.table.data for part in (data.train, data.held_out, data.train.stills) if isinstance(part, Listed)]
    digest = blake2b(data.train.digest.encode(), digest_size=8)
    for table in parts:
        names = ["path", "class", "held_out", "height", "width"]
        names += [name for name in ("start", "rate") if name in table.column_names]  # of a clip in its film
        columns = [table.column(name) for name in names]
        for start in range(0, table.num_rows, _ROWS):
            rows = zip(*(column.slice(start, _ROWS).to_pylist() for column in columns), strict=True)
            digest.update(json.dumps(list(rows)).encode())
    return f", {digest.hexdigest()}" if parts or data.train.digest else ""


def open_latents(folder: Path, expected: Mapping[str, str], data: ImageSet) -> ImageSet:
    """The latents in `folder` as a set of the classes and captions of `data`, each part `Latents`.

    Shards are compared with the manifest: their sizes always, their SHA-256 unless they hold more than 1 GB together.

    Args:
        folder: what `encode_set` wrote.
        expected: this run's `fingerprint`.
        data: the pictures they were made of.

    Raises:
        InputError: there are none, they are unfinished, of something else, of a later release, or damaged; one line.
    """
    manifest = read_manifest(folder)
    refuse_others(folder, manifest.fingerprint, expected)
    shape = manifest.shape
    parts = [(manifest.train, data.train, shape, manifest.variants), (manifest.held_out, data.held_out, shape, 1)]
    if manifest.stills is not None and data.train.stills is not None:
        parts.append((manifest.stills, data.train.stills, (shape[0], 1, *shape[2:]), manifest.variants))
    read_whole = sum(shard.bytes for shard in manifest.shards) <= _READ_WHOLE
    opened = []
    for part, pixels, shape, variants in parts:
        listed = sum(shard.pictures for shard in part.shards)
        if not part.pictures == listed == len(pixels):
            raise InputError(
                f"{folder / MANIFEST} speaks of {listed} pictures where the data have {len(pixels)}; remove it, and "
                "what is missing is encoded."
            )
        blocks: list[np.ndarray] = []
        for shard in part.shards:
            problem = damage(folder, shard, read_whole) or _map(folder, shard, shape, variants, blocks)
            if problem:
                raise InputError(f"{problem}; remove {folder / MANIFEST}, and that shard alone is encoded again.")
        opened.append(Latents(blocks, pixels, shape, getattr(torch, manifest.dtype), variants))
    opened[0].stills = opened[2] if len(opened) > 2 else None
    return replace(data, train=opened[0], held_out=opened[1])


def read_manifest(folder: Path) -> Manifest:
    """What `folder` holds.

    Raises:
        InputError: no latents, unfinished ones, a manifest that cannot be read, or one of a later release.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = len(list(folder.glob("*.arrow")))
        state = f"encoding stopped after {begun} shards; it goes on where it is run again" if begun else "none there"
        raise InputError(f"{folder} holds no finished latents, expected {MANIFEST}: {state}.")
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(
            f"{path} is damaged, expected the JSON that ends an encoding; remove it, and it is written again from the "
            "shards."
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping that this module's formats know; None if the file holds no such thing.

    Raises:
        InputError: it cannot be read, or was written by a later release.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        return None
    if values["format"] > FORMAT:
        raise InputError(
            f"{path} has format {values['format']}, of a later release than this one, which reads up to {FORMAT}; "
            "upgrade rectiflow, or name another folder with --set latent.cache.dir."
        )
    return values


def refuse_others(folder: Path, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Nothing, if the latents in `folder` are this run's.

    Raises:
        InputError: they are not; every part of the fingerprint that differs is named. Nothing is removed.
    """
    clauses = []
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        there, here = theirs.get(name, "none"), mine.get(name, "none")
        if there != here:
            if name == "transform":
                there, here = _only_differing(there, here)
            clause = _CLAUSES.get(name, f"has {name} {{theirs}} (this run's is {{mine}})")
            clauses.append(clause.format(theirs=_short(there), mine=_short(here)))
    if clauses:
        raise InputError(
            f"{folder} {' and '.join(clauses)}; remove the folder, or name another with --set latent.cache.dir."
        )


def damage(folder: Path, shard: Shard, read_whole: bool) -> str:
    """What is wrong with a shard: missing, of another size or, with `read_whole`, of another content; else nothing."""
    path = folder / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"{path} has {size} bytes, expected {shard.bytes}"
        return f"{path} was altered: its SHA-256 is another" if read_whole and sha256(path) != shard.sha256 else ""
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error


def _map(folder: Path, shard: Shard, shape: Sequence[int], variants: int, blocks: list[np.ndarray]) -> str:
    """Put the rows of a shard behind `blocks`, not copied; or say what is wrong with it."""
    try:
        chunks = Dataset.from_file(str(folder / shard.name)).data.column(COLUMN).chunks
        bits = [chunk.flatten().to_numpy(zero_copy_only=True).view(np.int16) for chunk in chunks]
        found = [flat.reshape(-1, *shape) for flat in bits]
    except Exception as error:  # the reader lets through whatever its parsers raise
        return f"{folder / shard.name} cannot be read as Arrow ({type(error).__name__})"
    if sum(len(block) for block in found) != shard.pictures * variants:
        return f"{folder / shard.name} holds other rows than the manifest says"
    blocks.extend(found)
    return ""


def _only_differing(left: str, right: str) -> tuple[str, str]:
    """Of two lists of settings, those that the other lacks."""
    mine, other = left.split(", "), right.split(", ")
    missing = [[item for item in a if item not in b] for a, b in ((mine, other), (other, mine))]
    return ", ".join(missing[0]) or "nothing more", ", ".join(missing[1]) or "nothing more"


def _short(value: str) -> str:
    return f"{value[:8]}…" if len(value) == 64 and " " not in value else value
