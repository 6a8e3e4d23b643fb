"""Settings of networks. Never imports torch."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError


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


class TransformerConfig(Config, ABC):
    """What transformers over patches have in common.

    Args:
        kind: which of them it is.
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
        texts: captions, by one encoder or several; () is none, None takes them from the run.
        picture: channels of a picture given as condition; 0 is none, None takes it from the run.
    """

    kind: str
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
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} over {self.heads} heads must give a multiple of 4 each; "
                f"use a width that is a multiple of {4 * self.heads}"
            )
        return self

    @property
    @abstractmethod
    def needs_captions(self) -> bool:
        """Whether it is of no use without captions."""

    @property
    def multiple(self) -> int:
        """What divides the height and the width of its input."""
        return self.patch


class DiTConfig(TransformerConfig):
    """A diffusion transformer (Peebles & Xie 2023) with RMSNorm, QK-norm, SwiGLU and axial RoPE.

    With captions each block attends to their tokens (Chen et al. 2024, PixArt-α), and one vector for all of a caption
    joins the time. Arguments as for `TransformerConfig`, with kind "dit".
    """

    kind: Literal["dit"] = "dit"

    @property
    def needs_captions(self) -> bool:
        """Labels will do."""
        return False


class MMDiTConfig(TransformerConfig):
    """A transformer with a stream for the picture and one for the caption (Esser et al. 2024, MM-DiT).

    The streams have weights and modulation of their own and attend to both together. Queries and keys are normalised,
    those of the picture turned by their place; a vector for the whole caption joins the time in the modulation.
    Arguments as for `TransformerConfig`, with kind "mmdit" and captions by one encoder at least.
    """

    kind: Literal["mmdit"] = "mmdit"
    modulation: Literal["block", "shared"] = "shared"

    @model_validator(mode="after")
    def _has_captions(self) -> Self:
        if self.texts == ():
            raise ValueError("kind mmdit is for captions, and texts is empty; use kind dit")
        return self

    @property
    def needs_captions(self) -> bool:
        """It has a stream for them."""
        return True


class VideoDiTConfig(TransformerConfig):
    """A transformer over patches of space and time, which takes clips B×C×T×H×W and pictures as clips of one frame.

    Captions have a stream of their own as in "mmdit"; without captions it is one stream as in "dit". Queries and keys
    are turned by time, row and column: of the c/2 pairs of a head ⌊c/6⌋ by the row, as many by the column and the
    rest by time (of 32 features 12, 10 and 10). Arguments as for `TransformerConfig`, with kind "video", 8 features of
    a head at least, and:

    Args:
        attention: "full", each token attends to all of the clip; or "factorised", with the same weights, in turns to
            its frame (the first block, the third, …) and to its place at all times. To captions both attend.
        picture: channels of clean latents given as condition for some of the frames.
    """

    kind: Literal["video"] = "video"
    modulation: Literal["block", "shared"] = "shared"
    attention: Literal["full", "factorised"] = "full"

    @model_validator(mode="after")
    def _heads_are_wide(self) -> Self:
        if self.width < 8 * self.heads:
            raise ValueError(
                f"width {self.width} over {self.heads} heads leaves no pair to turn by row and column; "
                f"use {self.width // 8 or 1} heads or fewer"
            )
        return self

    @property
    def needs_captions(self) -> bool:
        """Labels will do."""
        return False


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


NetworkConfig = Annotated[DiTConfig | MMDiTConfig | VideoDiTConfig | UNetConfig, Field(discriminator="kind")]
KINDS: dict[str, type[TransformerConfig] | type[UNetConfig]] = {
    "dit": DiTConfig,
    "mmdit": MMDiTConfig,
    "video": VideoDiTConfig,
    "unet": UNetConfig,
}


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
    if isinstance(config, TransformerConfig) and config.needs_captions and not inputs.texts:
        raise InputError(f"network.kind={config.kind} is for captions, and this run has none; use network.kind=dit.")
    classes = inputs.classes if config.classes is None else config.classes
    return config.model_copy(update={**inputs._asdict(), "classes": classes})


def resolved(config: TransformerConfig | UNetConfig) -> Inputs:
    """What a network that can be built is given.

    Raises:
        InputError: its channels or classes are still open.
    """
    if config.channels is None or config.classes is None:
        raise InputError("network.channels and network.classes are left to the data; a network needs them as numbers.")
    return Inputs(config.channels, config.classes, config.texts or (), config.picture or 0)
