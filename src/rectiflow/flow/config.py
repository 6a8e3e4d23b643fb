"""Settings of a flow. Never imports torch."""

from typing import Literal

from pydantic import Field

from rectiflow.base.config import Config

ScheduleName = Literal["rectified", "trig"]
PredictionName = Literal["velocity", "noise", "data", "score"]


class FlowConfig(Config):
    """Conventions that are saved with a model and enforced when it is loaded.

    Args:
        schedule: the path x_t = α(t)x + β(t)z.
        prediction: what the network's output means.
        shift: s > 0 of t' = s·t/(1+(s−1)t), for training and sampling alike; 1 is none.
    """

    schedule: ScheduleName = "rectified"
    prediction: PredictionName = "velocity"
    shift: float = Field(1.0, gt=0)


class TimesConfig(Config):
    """From which density training draws t.

    Args:
        density: uniform on [0, 1], or logit-normal: logit(t) ~ N(mean, std²).
        mean: mean of logit(t); 0 is symmetric (logit-normal only).
        std: standard deviation of logit(t), > 0 (logit-normal only).
    """

    density: Literal["uniform", "logit-normal"] = "uniform"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
