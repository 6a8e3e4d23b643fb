"""Settings and presets of networks. Never imports torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError, unknown

_SIZES = {
    "tiny": {"width": 128, "depth": 6, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dit": {f"{size}/{patch}": {**shape, "patch": patch} for size, shape in _SIZES.items() for patch in (1, 2, 4, 8)},
    "mmdit": {
        f"{size}/{patch}": {"width": width, "depth": depth, "heads": width // 64 or 1, "patch": patch}
        for size, width, depth in (
            ("mm-tiny", 128, 6),
            ("mm-S", 384, 12),
            ("mm-B", 768, 12),
            ("mm-L", 1024, 24),
            ("mm-2B", 1536, 36),
        )
        for patch in (1, 2, 4, 8)
    },
    "unet": {
        f"unet-{size}": {
            "width": width,
            "multipliers": (1, 2, 4),
            "blocks": 2,
            "attention": (2, 4),
            "heads": width // 16,
        }
        for size, width in {"S": 48, "M": 96, "L": 192}.items()
    },
}


class TokensInput(Config):
    """Captions as ids of tokens, read by a transformer that is a part of the network.

    Args:
        kind: "tokens".
        vocabulary: number of ids.
        width: features of a token; None takes the network's.
        depth: blocks of the transformer; a head has 32 features.
    """

    kind: Literal["tokens"] = "tokens"
    vocabulary: int = Field(2, ge=1)
    width: int | None = Field(None, ge=32, multiple_of=32)
    depth: int = Field(2, ge=1)


class StatesInput(Config):
    """Captions as states of a frozen encoder.

    Args:
        kind: "states".
        features: of the state of a token.
        pooled: of the vector for the whole caption; 0 if the encoder gives none.
    """

    kind: Literal["states"] = "states"
    features: int = Field(ge=1)
    pooled: int = Field(0, ge=0)


TextInput = Annotated[TokensInput | StatesInput, Field(discriminator="kind")]


class DiTConfig(Config):
    """A diffusion transformer (Peebles & Xie 2023) with RMSNorm, QK-norm, SwiGLU and axial RoPE.

    Args:
        kind: "dit".
        channels: C of its input and output; None takes it from the data.
        classes: number of labels; 0 is unconditional, None takes it from the data.
        patch: side of a patch in pixels; it must divide height and width.
        width: D, features of a token.
        depth: number of blocks.
        heads: attention heads; the width of a head must be a multiple of 4.
        modulation: "block", each block turns the condition into its own shifts, scales and gates (adaLN-zero); or
            "shared", one map for all blocks and a bias in each, with about a third of the parameters less.
        label_std: standard deviation of the labels' features at first, > 0. At low rates labels that start nearly alike
            stay so for a thousand steps.
        texts: captions, by one encoder or several; () is none, None takes them from the run. Each block then attends
            to their tokens (Chen et al. 2024, PixArt-α), and one vector for all of a caption joins the time.
        picture: channels of a picture given as condition; 0 is none, None takes it from the run.
    """

    kind: Literal["dit"] = "dit"
    channels: int | None = Field(None, ge=1)
    classes: int | None = Field(None, ge=0)
    patch: int = Field(2, ge=1)
    width: int = Field(128, ge=4)
    depth: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    modulation: Literal["block", "shared"] = "block"
    label_std: float = Field(0.02, gt=0)
    texts: tuple[TextInput, ...] | None = None
    picture: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _check_heads(self.width, self.heads)
        return self

    @property
    def multiple(self) -> int:
        """What divides the height and the width of its input."""
        return self.patch


class MMDiTConfig(Config):
    """A transformer with a stream for the picture and one for the caption (Esser et al. 2024, MM-DiT).

    The streams have weights of their own and attend to both together. Queries and keys are normalised, those of the
    picture turned by their place; a vector for the whole caption joins the time in the modulation.

    Args:
        kind: "mmdit".
        channels: as for "dit".
        classes: as for "dit".
        patch: as for "dit".
        width: as for "dit".
        depth: number of joint blocks.
        heads: as for "dit".
        modulation: as for "dit"; each stream has its own.
        label_std: as for "dit".
        texts: captions, by one encoder or several, at least one; None takes them from the run.
        picture: as for "dit".
    """

    kind: Literal["mmdit"] = "mmdit"
    channels: int | None = Field(None, ge=1)
    classes: int | None = Field(None, ge=0)
    patch: int = Field(2, ge=1)
    width: int = Field(128, ge=4)
    depth: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    modulation: Literal["block", "shared"] = "shared"
    label_std: float = Field(0.02, gt=0)
    texts: tuple[TextInput, ...] | None = None
    picture: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _check_heads(self.width, self.heads)
        return self

    @model_validator(mode="after")
    def _has_captions(self) -> Self:
        if self.texts == ():
            raise ValueError("kind mmdit is for captions, and texts is empty; use kind dit")
        return self

    @property
    def multiple(self) -> int:
        """What divides the height and the width of its input."""
        return self.patch


class UNetConfig(Config):
    """A U-Net of residual blocks with attention at some levels (Ho et al. 2020; Dhariwal & Nichol 2021).

    Args:
        kind: "unet".
        channels: C of its input and output; None takes it from the data.
        classes: number of labels; 0 is unconditional, None takes it from the data.
        width: channels at multiplier 1; multiples of 16 suit the norms.
        multipliers: channels of each level over `width`, finest first; each level has half the side of the one before,
            so 2^(levels−1) must divide height and width.
        blocks: residual blocks of each level on the way down, and as many on the way up.
        attention: factors of shrinking (1, 2, 4, …) at whose levels each block is followed by attention; () is none.
        heads: attention heads; they must divide the channels of the levels that have attention.
        middle_attention: whether the middle, which works at the coarsest level, has attention.
        dropout: share of activations dropped in each block in training, in [0, 1); 0 is none.
        label_std: standard deviation of the labels' features at first, > 0.
        texts: as for "dit"; blocks with attention attend to the captions too (Rombach et al. 2022).
        picture: as for "dit".
    """

    kind: Literal["unet"] = "unet"
    channels: int | None = Field(None, ge=1)
    classes: int | None = Field(None, ge=0)
    width: int = Field(32, ge=1)
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), min_length=1)
    blocks: int = Field(2, ge=1)
    attention: tuple[int, ...] = (4,)
    heads: int = Field(4, ge=1)
    middle_attention: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    label_std: float = Field(1.0, gt=0)
    texts: tuple[TextInput, ...] | None = None
    picture: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        factors = {2**level: self.width * multiplier for level, multiplier in enumerate(self.multipliers)}
        if strange := [factor for factor in self.attention if factor not in factors]:
            raise ValueError(
                f"attention at factor {strange[0]}, but {len(self.multipliers)} levels have the factors "
                f"{', '.join(map(str, factors))}; choose among these"
            )
        middle = list(factors.values())[-1:] if self.middle_attention else []
        for width in [*(factors[factor] for factor in self.attention), *middle]:
            if width % self.heads:
                raise ValueError(
                    f"{self.heads} heads do not divide the {width} channels of a level with attention; "
                    f"use a width that is a multiple of {self.heads}"
                )
        return self

    @property
    def multiple(self) -> int:
        """What divides the height and the width of its input."""
        return 2 ** (len(self.multipliers) - 1)


NetworkConfig = Annotated[DiTConfig | MMDiTConfig | UNetConfig, Field(discriminator="kind")]
KINDS: dict[str, type[DiTConfig] | type[MMDiTConfig] | type[UNetConfig]] = {
    "dit": DiTConfig,
    "mmdit": MMDiTConfig,
    "unet": UNetConfig,
}


def _check_heads(width: int, heads: int) -> None:
    if width % (4 * heads):
        raise ValueError(
            f"width {width} over {heads} heads must give a multiple of 4 each; "
            f"use a width that is a multiple of {4 * heads}"
        )


class Inputs(NamedTuple):
    """What a network is given and told.

    Args:
        channels: C of x_t and of its output.
        classes: number of labels; 0 is none.
        texts: captions, by each encoder.
        picture: channels of a picture given as condition; 0 is none.
    """

    channels: int
    classes: int = 0
    texts: tuple[TextInput, ...] = ()
    picture: int = 0


def fitted(config: NetworkConfig, inputs: Inputs) -> NetworkConfig:
    """`config` with what it leaves open taken from the data.

    Args:
        config: an architecture; with classes=0 it stays unconditional, whatever labels the data have.
        inputs: what the network will see.

    Raises:
        InputError: a number that is given is not the data's.
    """
    asked = {"channels": config.channels, "classes": config.classes or None, "picture": config.picture}
    for name, number in asked.items():
        there = getattr(inputs, name)
        if number not in (None, there):
            raise InputError(f"network.{name} is {number}, but the data have {there}; set network.{name}={there}.")
    if config.texts not in (None, inputs.texts):
        raise InputError("network.texts is not what the run's captions give; leave it out, and set text.encoders.")
    if isinstance(config, MMDiTConfig) and not inputs.texts:
        raise InputError("network.kind=mmdit is for captions, and this run has none; use network.kind=dit.")
    classes = inputs.classes if config.classes is None else config.classes
    return config.model_copy(update={**inputs._asdict(), "classes": classes})


def resolved(config: NetworkConfig) -> Inputs:
    """What a network that can be built is given.

    Raises:
        InputError: its channels or classes are still open.
    """
    if config.channels is None or config.classes is None:
        raise InputError("network.channels and network.classes are left to the data; a network needs them as numbers.")
    return Inputs(config.channels, config.classes, config.texts or (), config.picture or 0)


def overlay(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a network with a layer of configuration put over them.

    A preset stands for its numbers; numbers that stand beside it win. A layer that names another kind starts from that
    kind's defaults: only channels and classes are kept.

    Args:
        below: settings with their kind.
        layer: perhaps with `kind` or `preset`, such as "S/2".

    Raises:
        InputError: no such kind, or no such preset of this kind.
    """
    kind = layer.get("kind", below["kind"])
    if str(kind) not in KINDS:
        raise unknown("network.kind", str(kind), KINDS)
    inputs = ("channels", "classes")
    kept = dict(below) if kind == below["kind"] else {name: below.get(name) for name in inputs}
    settings = dict(layer)
    name = settings.pop("preset", None)
    return {**kept, **({} if name is None else preset(str(kind), str(name))), **settings, "kind": kind}


def preset(kind: str, name: str) -> dict[str, Any]:
    """The numbers of a preset of one kind.

    Raises:
        InputError: no such preset of this kind.
    """
    for other, presets in PRESETS.items():
        if other != kind and name in presets:
            mine = ", ".join(PRESETS[kind])
            raise InputError(f"preset '{name}' is of network.kind={other}, not {kind}. Expected one of: {mine}.")
    if name not in PRESETS[kind]:
        raise unknown("preset", name, PRESETS[kind])
    return PRESETS[kind][name]
