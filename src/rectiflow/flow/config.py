"""Settings of a flow. Never imports torch."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config

SourceName = Literal["gaussian", "uniform", "mixture", "pictures"]
CouplingName = Literal["independent", "optimal-transport"]
ScheduleName = Literal["rectified", "trig", "polynomial", "vp-linear", "ve"]
PredictionName = Literal["velocity", "noise", "data", "score"]


class FlowConfig(Config):
    """Conventions that are saved with a model and enforced when it is loaded.

    Args:
        schedule: the path x_t = α(t)x + β(t)z.
        prediction: what the network's output means.
        shift: s > 0 of t' = s·t/(1+(s−1)t), for training and sampling alike; 1 is none.
        shift_by_size: whether s is multiplied by max(1, √(d/4096)), d the elements of a sample: what has more of them
            tells more of itself through the same noise, so it is shown more of it.
        exponent: n > 0 of β = tⁿ (polynomial only); 1 is rectified.
        sigma_min: least noise σ_min > 0 (ve only).
        sigma_max: greatest noise σ_max > σ_min (ve only).
        sigma_data: assumed standard deviation σ_d > 0 of the data; scales the network's input and output (ve and
            vp-linear) and enters the edm weight.
        source: what z is drawn from: N(0, I); uniform with the same mean and deviation; a mixture of normals; or other
            pictures (a bridge from `data.source_dir`).
        source_components: normals K ≥ 1 of source=mixture.
        source_std: deviation in (0, 1) of each of them; their means are drawn so that all together have deviation 1.
        coupling: how z and x are paired in training: as drawn, or by optimal transport within a batch and a label.
        one_step: whether the network knows one thing only, the average velocity u from t = 1 to t = 0, so that
            x = z − u(z): a decoder of z or a generator. It is sampled in one step and has no score.
    """

    schedule: ScheduleName = "rectified"
    prediction: PredictionName = "velocity"
    shift: float = Field(1.0, gt=0)
    shift_by_size: bool = False
    exponent: float = Field(1.0, gt=0)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    sigma_data: float = Field(0.5, gt=0)
    source: SourceName = "gaussian"
    source_components: int = Field(8, ge=1)
    source_std: float = Field(0.5, gt=0, lt=1)
    coupling: CouplingName = "independent"
    one_step: bool = False

    @model_validator(mode="after")
    def _one_step_is_an_average_velocity(self) -> Self:
        if self.one_step and (self.schedule, self.prediction) != ("rectified", "velocity"):
            raise ValueError("a one-step model gives x = z − u: it needs schedule=rectified and prediction=velocity")
        if self.one_step and (self.source, self.coupling) != ("gaussian", "independent"):
            raise ValueError("a one-step model needs source=gaussian and coupling=independent")
        return self

    @model_validator(mode="after")
    def _a_bridge_ends_at_its_source(self) -> Self:
        if self.source == "pictures" and self.schedule not in ("rectified", "trig", "polynomial"):
            raise ValueError(f"schedule={self.schedule} never ends at its source; a bridge needs rectified or trig")
        return self

    @model_validator(mode="after")
    def _noise_grows(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}; EDM's are 0.002 and 80"
            )
        return self


class TimesConfig(Config):
    """From which density training draws t.

    Args:
        density: uniform on [0, 1]; logit-normal: logit(t) ~ N(mean, std²); mode: t = u − scale·(sin²(πu/2) − u); or
            discrete: each of the `count` times 1/count, 2/count, …, 1 alike, the steps of a chain such as DDPM's.
        mean: mean of logit(t); 0 is symmetric (logit-normal only).
        std: standard deviation of logit(t), > 0 (logit-normal only).
        scale: in [−1, 2/(π−2)]: above 0 favours the middle, below 0 the ends, 0 is uniform (mode only).
        count: T ≥ 2, steps of the chain (discrete only).
    """

    density: Literal["uniform", "logit-normal", "mode", "discrete"] = "uniform"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    scale: float = Field(1.29, ge=-1, le=2 / (math.pi - 2))
    count: int = Field(1000, ge=2)


class WeightConfig(Config):
    """How the loss weighs a time: c(t)·‖v − v̂‖², given directly or by a weight w(λ) of the log-SNR.

    Args:
        kind: velocity (c = 1, the textbook's), noise (the loss is ‖z − ẑ‖²) or data (‖x − x̂‖²); or, whatever the
            density of times, elbo (w = 1; with discrete times the terms of the discrete bound), sigmoid (w = σ(bias −
            λ)), min-snr (w = sech(λ/2)·min(1, gamma·e^(−λ))) or edm (w = N(λ; −2·mean, (2·std)²)·(e^(−λ) + σ_d²)).
        bias: (sigmoid only) greater weighs low noise more.
        gamma: > 0 (min-snr only).
        mean: of log σ (edm only).
        std: of log σ, > 0 (edm only).
    """

    kind: Literal["velocity", "noise", "data", "elbo", "sigmoid", "min-snr", "edm"] = "velocity"
    bias: float = 0.0
    gamma: float = Field(5.0, gt=0)
    mean: float = -1.2
    std: float = Field(1.2, gt=0)
