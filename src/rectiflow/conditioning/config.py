"""Settings of text as a condition. Never imports torch."""

from typing import Annotated, Literal

from pydantic import Field

from rectiflow.base.config import Config
from rectiflow.networks.config import StatesInput, TokensInput


class LearnedConfig(Config):
    """Byte pairs of the run's own captions, read by a transformer that is trained with the flow.

    Args:
        kind: "learned".
        vocabulary: tokens at most, the 256 bytes and two marks among them.
        length: tokens of a caption at most; what is longer is cut, and told.
        depth: blocks of the transformer.
        width: features of a token; None takes the network's.
        dropout: share of the samples trained without this encoder's captions, beside those without any condition.
    """

    kind: Literal["learned"] = "learned"
    vocabulary: int = Field(2000, ge=258)
    length: int = Field(64, ge=3)
    depth: int = Field(2, ge=1)
    width: int | None = Field(None, ge=32, multiple_of=32)
    dropout: float = Field(0.0, ge=0, lt=1)


class FrozenConfig(Config):
    """An encoder that `transformers` loads, such as T5 or CLIP; its weights stay as they are.

    Args:
        kind: "frozen".
        name: its local folder, or ORG/NAME on the hub.
        length: tokens of a caption at most; None is the encoder's own limit.
        dropout: as for "learned".
    """

    kind: Literal["frozen"] = "frozen"
    name: str
    length: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class TextConfig(Config):
    """Captions as a condition.

    Args:
        encoders: what reads them, one or several together.
    """

    encoders: tuple[Annotated[LearnedConfig | FrozenConfig, Field(discriminator="kind")], ...] = Field(
        (LearnedConfig(),), min_length=1
    )


class TokensRecord(Config):
    """What `config.json` says of byte pairs that were learned with a model.

    Args:
        kind: "tokens".
        length: tokens of a caption at most.
        gives: how the network reads them.
        file: the tokenizer beside the weights.
    """

    kind: Literal["tokens"] = "tokens"
    length: int = Field(ge=3)
    gives: TokensInput
    file: str


class StatesRecord(Config):
    """What `config.json` says of a frozen encoder.

    Args:
        kind: "states".
        name: its folder, or ORG/NAME on the hub.
        sha256: of its weights.
        length: tokens of a caption at most.
        gives: what the network is given.
    """

    kind: Literal["states"] = "states"
    name: str
    sha256: str
    length: int = Field(ge=1)
    gives: StatesInput


TextRecord = Annotated[TokensRecord | StatesRecord, Field(discriminator="kind")]
