"""Other guidances than the classifier-free one. With w = 0 none of them evaluates anything more.

Δ = v_y − v_∅ below, and x̂_y − x̂_∅ = −(β/W)Δ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.flow import AbstractFlow, Estimate, expand
from rectiflow.flow.prediction import Prediction
from rectiflow.sampling.guidance import Branch, ClassifierFree, Guidance, Weighted
from rectiflow.sampling.settings import described

_LEAST_BETA = 1e-3


@final
class Autoguidance(Weighted):
    """v = v_good + w·(v_good − v_bad) under one condition, or none (Karras et al. 2024, "… a bad version of itself").

    Args:
        bad: a smaller, or less trained, flow of the same data on the same path (see `OnSchedule`).
        weight: as for `Weighted`.
        interval: as for `Weighted`.
    """

    unconditional = True

    def __init__(self, bad: AbstractFlow, weight: float | Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(weight, interval)
        self.bad = bad

    def branches(self, condition: Condition | None, count: int, t: Tensor) -> list[Branch]:
        """The worse flow under the same condition, for the samples with w > 0, if t lies in the interval."""
        rows = self._rows(count, t)
        return [Branch(condition and condition.select(rows), rows, self.bad)] if len(rows) else []

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """(1+w)·v_good − w·v_bad."""
        return _velocity(given, (1 + w) * given.velocity - w * other.velocity)


@final
class APG(Weighted):
    """Adaptive projected guidance (Sadat et al. 2025), on the data: x̂ = x̂_y + w·D.

    D = x̂_y − x̂_∅; D ← D + μ·D of the step before; D ← D·min(1, r/‖D‖); D ← D_⊥ + η·D_∥, the parts at right angles to
    x̂_y and along it. Norms are of one sample, over all its dimensions.

    Args:
        weight: as for `Weighted`.
        interval: as for `Weighted`.
        momentum: μ; 0 is none.
        radius: r > 0, in units of the data over all d dimensions of a sample; ∞ is no limit.
        parallel: η; 1 keeps D whole, 0 only what is at right angles.
    """

    def __init__(
        self,
        weight: float | Tensor,
        interval: tuple[float, float] = (0.0, 1.0),
        momentum: float = -0.5,
        radius: float = math.inf,
        parallel: float = 0.0,
    ) -> None:
        super().__init__(weight, interval)
        if not radius > 0:
            raise InputError(f"apg's radius must be above 0 (inf is none), received {radius}.")
        self.momentum, self.radius, self.parallel = momentum, radius, parallel

    def init(self, shape: Sequence[int]) -> Tensor:
        """No momentum yet."""
        return torch.zeros(tuple(shape))

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """v_y − (W/β)·w·D."""
        # β is kept from 0 in both directions alike, so that a D that is only projected loses nothing there.
        scale = _scale(given)
        step = -scale * (given.velocity - other.velocity) + self.momentum * state.to(given.x_t)
        limited = step * (self.radius / _norm(step).clamp_min(1e-12)).clamp(max=1.0)
        along = given.data / _norm(given.data).clamp_min(1e-12)
        parallel = (limited * along).flatten(1).sum(1).reshape(w.shape) * along
        direction = limited - (1 - self.parallel) * parallel
        return replace(_velocity(given, given.velocity - w * direction / scale), memory=step)

    def commit(self, estimate: Estimate, state: Any) -> Tensor:
        """The D of the accepted step, before it was limited; nothing of samples that were not guided."""
        if estimate.memory is None:
            return torch.zeros_like(state)
        return estimate.memory


@final
class CFGZeroStar(Weighted):
    """v = (1+w)·v_y − w·a·v_∅ with a = ⟨v_y, v_∅⟩/‖v_∅‖² of each sample, and v = 0 at first (Fan et al. 2025).

    Args:
        weight: as for `Weighted`.
        interval: as for `Weighted`.
        still: share of the time from t = 1 at which guided samples do not move, in [0, 1); 0 is none.
    """

    def __init__(self, weight: float | Tensor, interval: tuple[float, float] = (0.0, 1.0), still: float = 0.04) -> None:
        super().__init__(weight, interval)
        if not 0 <= still < 1:
            raise InputError(f"cfg-zero's still share lies in [0, 1) (0 is none), received {still}.")
        self.still = still

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """(1+w)·v_y − w·a·v_∅, or 0."""
        good, null = given.velocity, other.velocity
        share = (good * null).flatten(1).sum(1) / null.square().flatten(1).sum(1).clamp_min(1e-12)
        value = (1 + w) * good - w * share.reshape(w.shape) * null
        moves = (given.t <= 1 - self.still) if self.still else torch.ones_like(given.t, dtype=torch.bool)
        return _velocity(given, value * expand(moves.double(), value))


@final
class CFGPlusPlus(Weighted):
    """x_s = α_s·(x̂_∅ + λ·(x̂_y − x̂_∅)) + β_s·ẑ_∅ (Chung et al. 2024): the data are guided, the noise is the null one.

    For a step from t to s that is classifier-free guidance with a weight that depends on the step,
    1 + w = λ/(1 − e^(−η)), η = log(α_s/β_s) − log(α_t/β_t): so it has an estimate like any other, and a solver of
    higher order follows the velocity that gives this step.

    Args:
        weight: λ ≥ 0, usually in [0, 1]; 0 never evaluates v_∅, as for the others.
        interval: as for `Weighted`.
    """

    def init(self, shape: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Known once a step begins."""
        return None

    def begin(self, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """The ends of the step, on which the weight depends."""
        return t, s

    def __call__(self, estimates: Sequence[Estimate], x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> Estimate:
        """As of `Weighted`; the weight of the whole step at each evaluation."""
        start, end = state if state is not None else (t, s)
        path = estimates[0].schedule
        here, there = path.at(start), path.at(end)
        ratio = here.alpha * there.beta / (here.beta * there.alpha)
        return super().__call__(estimates, x_t, t, s, (1 / (1 - ratio)).expand(len(x_t)))

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """v_∅ + λ/(1 − e^(−η))·Δ."""
        null = other.velocity
        return _velocity(given, null + w * expand(state, null) * (given.velocity - null))


@final
class Rescaled(Weighted):
    """Classifier-free guidance whose x̂ has the deviation of x̂_y (Lin et al. 2024), of each sample over its dimensions.

    Args:
        weight: as for `Weighted`.
        interval: as for `Weighted`.
        mix: φ in [0, 1]: the share of the rescaled x̂; 0 is plain guidance.
    """

    def __init__(self, weight: float | Tensor, interval: tuple[float, float] = (0.0, 1.0), mix: float = 0.7) -> None:
        super().__init__(weight, interval)
        if not 0 <= mix <= 1:
            raise InputError(f"rescale's mix lies in [0, 1] (0 is none), received {mix}.")
        self.mix = mix

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """v of φ·x̂·(deviation of x̂_y)/(deviation of x̂) + (1−φ)·x̂."""
        velocity = (1 + w) * given.velocity - w * other.velocity
        guided = replace(given, value=velocity, prediction=Prediction.VELOCITY)
        deviations = [estimate.data.flatten(1).std(1).reshape(w.shape) for estimate in (given, guided)]
        excess = self.mix * (deviations[0] / deviations[1].clamp_min(1e-12) - 1)
        return replace(guided, value=velocity - excess * guided.data / _scale(given))


GUIDANCES: dict[str, Callable[..., Guidance]] = {
    "cfg": ClassifierFree,
    "apg": APG,
    "cfg-zero": CFGZeroStar,
    "cfg++": CFGPlusPlus,
    "rescale": Rescaled,
    "auto": Autoguidance,
}


def guidance(
    description: str,
    weight: float | Tensor,
    interval: tuple[float, float] = (0.0, 1.0),
    bad: AbstractFlow | None = None,
) -> Guidance:
    """The guidance of that name, with settings if any are given: "cfg", "apg:momentum=0,radius=2", "rescale:mix=0.5".

    Args:
        description: NAME or NAME:SETTING=VALUE,…; the settings are the arguments of the guidance's class.
        weight: w (λ of cfg++) ≥ 0; 0 is none.
        interval: times within which it acts; (0, 1) is all.
        bad: the weaker flow of "auto".

    Raises:
        InputError: no such guidance or setting, a value that it cannot have, or "auto" without a weaker flow.
    """
    if description.partition(":")[0] == "auto" and bad is None:
        raise InputError("autoguidance needs a weaker model of the same pictures: --guide RUN.")
    return described("guidance", description, GUIDANCES, {"weight": weight, "interval": interval, "bad": bad})


def _velocity(given: Estimate, value: Tensor) -> Estimate:
    return replace(given, value=value, prediction=Prediction.VELOCITY)


def _scale(estimate: Estimate) -> Tensor:
    """β/W, by which a change of the velocity changes the data; β kept above 0.001."""
    at = estimate.schedule.at(estimate.t)
    return expand(at.beta.clamp_min(_LEAST_BETA) / at.wronskian, estimate.x_t)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
