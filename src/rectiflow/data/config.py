"""Settings of training data. Never imports torch."""

from typing import Literal

from pydantic import Field

from rectiflow.base.config import Config


class DataConfig(Config):
    """What to train on.

    Args:
        set: name of a built-in set.
        dequantise: width, in grey levels, of uniform noise added to each pixel; 0 is none, 1 fills the gaps between
            levels.
    """

    set: Literal["digits"] = "digits"
    dequantise: float = Field(0.0, ge=0, le=1)
