"""Settings of a picture as a condition. Never imports torch."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config


class PictureConfig(Config):
    """A picture given beside the noise, joined to it channel by channel.

    Three dropouts are drawn apart from each other: `dropout`, `alone`, and `condition_dropout`, which drops all.

    Args:
        kind: "low", averages over squares; "grey", the luminance of a coloured picture; "masked", the picture with a
            rectangle hidden; "paired", the picture of the same name in another folder.
        factor: side of a square of "low", in pixels; height and width must be multiples of it.
        least: share of the pixels that a rectangle of "masked" hides, at least.
        most: at most; between them evenly.
        dir: the other folder of "paired".
        dropout: share of samples trained without the picture, in [0, 1]; 0 makes a model that must be given one.
        alone: share of samples trained with the picture alone, without labels and captions, in [0, 1]: what guidance
            leads away from where the picture is kept. Without labels and captions it says nothing.
    """

    kind: Literal["low", "grey", "masked", "paired"]
    factor: int = Field(2, ge=2)
    least: float = Field(0.1, gt=0, lt=1)
    most: float = Field(0.5, gt=0, lt=1)
    dir: str = ""
    dropout: float = Field(0.1, ge=0, le=1)
    alone: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_are_in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least {self.least} is above most {self.most}; exchange them")
        return self

    def absolute(self) -> Self:
        """The same, which means the same from any working directory."""
        return self.model_copy(update={"dir": str(Path(self.dir).absolute())}) if self.dir else self
