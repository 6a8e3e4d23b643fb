"""Settings and presets of autoencoders. Never imports torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError, unknown

PRESETS: dict[str, dict[str, Any]] = {
    "f4": {"multipliers": (1, 2, 4), "latent_channels": 4},
    "f8": {"multipliers": (1, 2, 4, 4), "latent_channels": 16},
    "f16": {"multipliers": (1, 1, 2, 4, 4), "latent_channels": 32},
}


class AutoencoderConfig(Config):
    """A variational autoencoder of pictures (Rombach et al. 2022), of the layout that diffusers calls AutoencoderKL.

    Args:
        channels: C of the pictures; None takes it from the data.
        latent_channels: channels of the latents.
        width: channels at multiplier 1.
        multipliers: channels of each level over `width`, finest first; each level has half the side of the one before,
            so the latents are 2^(levels−1) times smaller than the picture on each side: the factor f.
        blocks: residual blocks of each level of the encoder; the decoder has one more.
        groups: groups of each norm; they must divide the channels of every level.
        attention: whether the middle has attention.
        linear: a linear code of patches f×f beside the convolutions, which then learn what it lacks, begun as the best
            one of the data; a model that diffusers knows has none. Of clips it is of temporal×f×f, and of f×f for the
            first frame.
        quantised: 1×1 convolutions around the latents, as in SD and SDXL; SD3 and FLUX have none.
        temporal: frames to each frame of latents but the first, which is of the first frame alone; 1 is of pictures.
    """

    channels: int | None = Field(None, ge=1, le=2**12)
    latent_channels: int = Field(16, ge=1, le=2**12)
    width: int = Field(32, ge=1, le=2**14)
    multipliers: tuple[Annotated[int, Field(ge=1, le=2**8)], ...] = Field((1, 2, 4, 4), min_length=1, max_length=12)
    blocks: int = Field(1, ge=1, le=2**6)
    groups: int = Field(8, ge=1)
    attention: bool = True
    linear: bool = False
    quantised: bool = False
    temporal: Literal[1, 2, 4] = 1

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        for width in self.widths:
            if width % self.groups:
                raise ValueError(
                    f"{self.groups} groups do not divide the {width} channels of a level; use a width that is a "
                    f"multiple of {self.groups}"
                )
        return self

    @model_validator(mode="after")
    def _time_fits(self) -> Self:
        if self.temporal > self.factor:
            raise ValueError(
                f"temporal {self.temporal} is halved beside the shrinks of the sides, of which there are "
                f"{len(self.multipliers) - 1}; use more multipliers or a smaller temporal"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def factor(self) -> int:
        """f = 2^(levels−1), by which the latents are smaller than the picture on each side."""
        return 2 ** (len(self.multipliers) - 1)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """C′×⌈H/f⌉×⌈W/f⌉ of a picture C×H×W; of a clip C×T×H×W C′×(1+(T−1)/temporal)×⌈H/f⌉×⌈W/f⌉."""
        time = [1 + (frames - 1) // self.temporal for frames in shape[1:-2]]
        return (self.latent_channels, *time, *(-(-side // self.factor) for side in shape[-2:]))


def overlay(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an autoencoder with a layer of configuration put over them; a preset stands for its numbers.

    Raises:
        InputError: no such preset.
    """
    settings = dict(layer)
    name = settings.pop("preset", None)
    if name is not None and name not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    return {**below, **({} if name is None else PRESETS[name]), **settings}


def fitted(config: AutoencoderConfig, channels: int) -> AutoencoderConfig:
    """`config` with the channels of the data.

    Raises:
        InputError: another number is asked for.
    """
    if config.channels not in (None, channels):
        raise InputError(
            f"network.channels is {config.channels}, but the data have {channels}; set network.channels={channels}."
        )
    return config.model_copy(update={"channels": channels})


def check_frames(temporal: int, shape: Sequence[int]) -> None:
    """Nothing, if an autoencoder of this temporal factor takes pictures C×H×W or clips C×T×H×W of this shape.

    Raises:
        InputError: pictures to one of clips, clips to one of pictures, or T that is not 1+temporal·k.
    """
    if temporal == 1:
        if len(shape) != 3:
            raise InputError(
                f"the autoencoder is of pictures C×H×W, received {'×'.join(map(str, shape))}; use one of clips "
                "(network.temporal=4), or pictures (data.frames=1)."
            )
        return
    if len(shape) != 4:
        raise InputError(
            f"the autoencoder is of clips C×T×H×W, received {'×'.join(map(str, shape))}; give a picture as a clip of "
            "one frame (data.frames above 1 does), or use an autoencoder of pictures."
        )
    frames = shape[1]
    if frames < 1 or (frames - 1) % temporal:
        nearest = 1 + temporal * max(0, round((frames - 1) / temporal))
        raise InputError(
            f"the autoencoder takes clips of 1+{temporal}k frames, received {frames}; the nearest is {nearest} "
            "(--frames of samples, data.frames of a run)."
        )


def check_sides(factor: int, size: tuple[int, int]) -> None:
    """Nothing, if an autoencoder of this factor can be trained on pictures of H, W.

    Raises:
        InputError: the factor does not divide the sides.
    """
    height, width = size
    if height % factor or width % factor:
        near = f"{max(1, round(height / factor)) * factor}×{max(1, round(width / factor)) * factor}"
        raise InputError(
            f"an autoencoder of factor {factor} trains on sides that {factor} divides; the data have "
            f"{height}×{width}, the nearest size is {near}: set data.size, or network.preset for another factor."
        )
