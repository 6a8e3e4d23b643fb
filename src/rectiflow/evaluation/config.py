"""Settings of an evaluation. Never imports torch."""

from typing import Annotated

from pydantic import Field

from rectiflow.base.config import Config


class EvaluateConfig(Config):
    """What is measured of a model.

    Args:
        count: samples drawn, ≥ 20; as many real pictures are compared with, if there are as many.
        features: "pixels", "encoder" (trained on the training pictures), or the local folder of one.
        steps: N intervals of the solver.
        solver: as for `rectiflow sample`.
        guidance: w ≥ 0; 0 is none.
        seed: of the samples, the encoder and the resampling.
        likelihood: whether to measure bits per dimension too.
        adherence: whether to measure what of a prompt is in its picture or clip too, on digit-scenes and digit-clips.
        weights: w ≥ 0 at which adherence is measured.
    """

    count: int = Field(1000, ge=20)
    features: str = "encoder"
    steps: int = Field(50, ge=1)
    solver: str = "euler"
    guidance: float = Field(0.0, ge=0)
    seed: int = 0
    likelihood: bool = False
    adherence: bool = False
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.0, 0.5, 1.0, 2.0, 4.0), min_length=1)
