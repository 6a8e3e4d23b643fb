"""Settings of text as a condition. Never imports torch."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from rectiflow.base.config import Config
from rectiflow.networks.config import StatesInput, TokensInput


class LearnedConfig(Config):
    """Byte pairs of the run's own captions, read by a transformer that is trained with the flow.

    Args:
        kind: "learned".
        vocabulary: tokens at most, the 256 bytes among them.
        length: tokens of a caption at most; what is longer is cut, and told.
        depth: blocks of the transformer.
        width: features of a token; None takes the network's.
        dropout: share of the samples trained without this encoder's captions, beside those without any condition.
    """

    kind: Literal["learned"] = "learned"
    vocabulary: int = Field(2000, ge=256)
    length: int = Field(64, ge=1)
    depth: int = Field(2, ge=1)
    width: int | None = Field(None, ge=32, multiple_of=32)
    dropout: float = Field(0.0, ge=0, lt=1)


class FrozenConfig(Config):
    """An encoder that `transformers` loads, such as T5 or CLIP; its weights stay as they are.

    Args:
        kind: "frozen".
        name: its local folder, or ORG/NAME on the hub; it holds the tokenizer too, and its weights as safetensors.
        length: tokens of a caption at most, its marks among them; None is the encoder's own limit. What is longer is
            cut, and told.
        dropout: as for "learned".
        precision: in which the encoder computes.
        cache: in which its states are kept on disk.
        embed: whether a model folder holds the encoder's files too, instead of its name and their SHA-256 alone.
    """

    kind: Literal["frozen"] = "frozen"
    name: str = Field(min_length=1)
    length: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    cache: Literal["float16", "bfloat16"] = "float16"
    embed: bool = False


class TextConfig(Config):
    """Captions as a condition.

    Args:
        encoders: what reads them, one or several together.
        cache: folder of the states of frozen encoders, which several runs of the same captions may share; "" is the
            run's own.
    """

    encoders: tuple[Annotated[LearnedConfig | FrozenConfig, Field(discriminator="kind")], ...] = Field(
        (LearnedConfig(),), min_length=1
    )
    cache: str = ""

    def absolute(self) -> Self:
        """The same, which means the same from any working directory; a name on the hub stays one."""
        encoders = tuple(
            each.model_copy(update={"name": str(Path(each.name).absolute())})
            if isinstance(each, FrozenConfig) and Path(each.name).exists()
            else each
            for each in self.encoders
        )
        cache = str(Path(self.cache).absolute()) if self.cache else ""
        return self.model_copy(update={"encoders": encoders, "cache": cache})


class TokensRecord(Config):
    """What `config.json` says of byte pairs that were learned with a model.

    Args:
        kind: "tokens".
        length: tokens of a caption at most.
        gives: how the network reads them.
        file: the tokenizer beside the weights.
    """

    kind: Literal["tokens"] = "tokens"
    length: int = Field(ge=1)
    gives: TokensInput
    file: str


class StatesRecord(Config):
    """What `config.json` says of a frozen encoder.

    Args:
        kind: "states".
        name: its folder, or ORG/NAME on the hub.
        sha256: of its weights and its tokenizer; see `encoder_files.digest`.
        length: tokens of a caption at most.
        precision: in which it computes.
        folder: where its files lie beside the weights; empty if they are not there.
        gives: what the network is given.
    """

    kind: Literal["states"] = "states"
    name: str
    sha256: str
    length: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    folder: str = ""
    gives: StatesInput


TextRecord = Annotated[TokensRecord | StatesRecord, Field(discriminator="kind")]
