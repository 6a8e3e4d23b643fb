"""Settings of frames as a condition. Never imports torch."""

from typing import Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config


class FramesConfig(Config):
    """Frames of a clip given beside the noise: clean latents where they lie, and a mask that says where.

    What is given of a clip in training is drawn by these weights, divided by their sum (as Open-Sora trains its
    image-to-video model). A still is given nothing.

    Args:
        nothing: the prompt alone, which is also what guidance leads away from.
        first: the first frame.
        last: the last frame.
        both: the first and the last.
        beginning: the first frames, from two latent ones to all but one: what continues a clip that ends with them.
        alone: share of samples, in [0, 1], trained with what is given and no label or caption: what guidance leads
            away from where the frames are kept.
    """

    nothing: float = Field(4.0, ge=0)
    first: float = Field(3.0, ge=0)
    last: float = Field(1.0, ge=0)
    both: float = Field(1.0, ge=0)
    beginning: float = Field(1.0, ge=0)
    alone: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if not sum(self.weights):
            raise ValueError("nothing, first, last, both and beginning are all 0; give one of them a weight")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """Of nothing, first, last, both and beginning, in this order."""
        return self.nothing, self.first, self.last, self.both, self.beginning
