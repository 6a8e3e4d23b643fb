"""Solvers that add noise: the marginals of the flow's ODE, by paths that forget where they came from.

dx = (v + ε ẑ/β) dt + √(2ε) dW for any ε(t) ≥ 0, marched from t = 1 to t = 0. All of them need the score −ẑ/β. The last
step, to the schedule's t_min, adds no noise.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError, unknown
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import Estimate, expand
from rectiflow.flow.schedule import Coefficients, Schedule
from rectiflow.sampling.exponential import bh2, data_weights
from rectiflow.sampling.method import Field, History, Solver, Transition, combine

Draw = Callable[[Tensor, float], Tensor]
Past = tuple[Any, ...]

EPSILON: dict[str, Callable[[Tensor, Coefficients], Tensor]] = {
    "t": lambda t, at: t,
    "sbdm": lambda t, at: at.beta * at.wronskian / at.alpha,
    "constant": lambda t, at: torch.ones_like(t),
    "sin2": lambda t, at: torch.sin(math.pi * t) ** 2,
}


@dataclass(frozen=True)
class Noise:
    """ξ ~ N(0, I) for each step and picture: a function of (seed, step, global index), whatever the batch.

    Args:
        seed: any integer.
        index: int64 B, the global index of each picture; None counts them from 0.
    """

    seed: int = 0
    index: Tensor | None = None

    def __call__(self, step: int, number: int, like: Tensor) -> Tensor:
        """The `number`-th draw of a step, in the shape, dtype and device of `like` (B×…)."""
        index = torch.arange(len(like)) if self.index is None else self.index
        purpose = f"sampler noise {number}" if number else "sampler noise"
        return Key(self.seed, purpose, step).normal(index, like.shape[1:]).to(like)


@dataclass(frozen=True)
class _Memory:
    """From step to step: steps done, data predictions, and what the last step drew from."""

    steps: int = 0
    past: Past = ()
    transitions: tuple[Transition, ...] = ()


class Stochastic(Solver):
    """One step of a method that draws noise. Subclasses are final.

    Args:
        noise: what it draws; None is that of seed 0.
    """

    order = 1
    evaluations = 1

    def __init__(self, noise: Noise | None) -> None:
        self.noise = noise or Noise()

    @abstractmethod
    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """x_s, and what `past` is to be at the next step; draw(mean, std) draws, and returns the mean if std = 0."""

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s.

        Raises:
            InputError: the flow has no score.
        """
        memory: _Memory = history[0] if history else _Memory()
        drawn: list[Transition] = []

        def draw(mean: Tensor, std: float) -> Tensor:
            if std == 0:
                return mean
            value = mean + std * self.noise(memory.steps, len(drawn), mean)
            drawn.append(Transition(mean, std, value))
            return value

        def scored(x: Tensor, time: Tensor) -> Estimate:
            estimate = field(x, time)
            if estimate.no_score:
                raise InputError(
                    f"a stochastic solver needs the score: {estimate.no_score}; use a solver such as ab2-pec."
                )
            return estimate

        x_s, past = self.march(scored, x_t, t, s, draw, memory.past)
        return x_s, (_Memory(memory.steps + 1, past, tuple(drawn)),)

    def transitions(self, history: History) -> tuple[Transition, ...]:
        """The Gaussians that the step which returned `history` drew from."""
        return history[0].transitions


@final
class EulerMaruyama(Stochastic):
    """x_s = x_t − h(v + ε ẑ/β) + √(2εh) ξ with h = t − s; Euler's step of the ODE where ε is infinite, and the last.

    Args:
        noise: see `Stochastic`.
        epsilon: "sbdm", ε = βW/α (Song et al. 2021), infinite where α = 0; "t"; "constant", ε = 1; or "sin2", sin²(πt).
        scale: ≥ 0, multiplies ε; at 0 the method is Euler's.

    Raises:
        InputError: an unknown ε, or a negative scale.
    """

    def __init__(self, noise: Noise | None = None, epsilon: str = "sbdm", scale: float = 1.0) -> None:
        super().__init__(noise)
        if epsilon not in EPSILON:
            raise unknown("epsilon of the solver sde", epsilon, EPSILON)
        self.epsilon, self.scale = EPSILON[epsilon], within("sde:scale", scale, math.inf)

    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """See `EulerMaruyama`."""
        estimate = field(x_t, t)
        at, h = estimate.schedule.at(t), float(s - t)
        epsilon = float(self.scale * self.epsilon(t, at)) if self.scale else 0.0
        if not math.isfinite(epsilon) or epsilon == 0 or _is_last(estimate.schedule, s):
            return x_t + h * estimate.velocity, ()
        slope = estimate.velocity + epsilon / float(at.beta) * estimate.noise
        return draw(x_t + h * slope, math.sqrt(-2 * epsilon * h)), ()


@final
class Ancestral(Stochastic):
    """x_s = α_s x̂ + √(β_s² − σ²) ẑ + σ ξ with σ² = η²β_s²(1 − (α_tβ_s/(α_sβ_t))²): DDIM to DDPM (Song et al. 2021).

    Args:
        noise: see `Stochastic`.
        eta: η in [0, 1]; 0 is DDIM, 1 is DDPM.

    Raises:
        InputError: η outside [0, 1].
    """

    def __init__(self, noise: Noise | None = None, eta: float = 1.0) -> None:
        super().__init__(noise)
        self.eta = within("ddpm:eta", eta, 1.0)

    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """See `Ancestral`."""
        estimate = field(x_t, t)
        there, kept = estimate.schedule.at(s), _kept(estimate.schedule, t, s)
        eta = 0.0 if _is_last(estimate.schedule, s) else self.eta
        variance = eta**2 * there.beta**2 * (1 - kept**2)
        ahead = (there.beta**2 - variance).clamp(min=0).sqrt()
        mean = expand(there.alpha, x_t) * estimate.data + expand(ahead, x_t) * estimate.noise
        return draw(mean, float(variance.sqrt())), ()


@final
class StochasticDPM(Stochastic):
    """SDE-DPM-Solver++(2M): x_s = (β_s/β_t)e^(−η) x_t + α_s(1 − e^(−2η)) D + β_s√(1 − e^(−2η)) ξ (Lu et al. 2022).

    D and η are those of DPM-Solver++(2M).

    Args:
        noise: see `Stochastic`.
    """

    def __init__(self, noise: Noise | None = None) -> None:
        super().__init__(noise)

    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """See `StochasticDPM`."""
        estimate = field(x_t, t)
        path, past = estimate.schedule, ((float(t), estimate.data), *past)[:2]
        here, there, kept = path.at(t), path.at(s), _kept(path, t, s)
        # α_s(1 − e^(−η))D, from which D follows with 1 − e^(−2η) in place of 1 − e^(−η).
        weights = data_weights(path, [time for time, _ in past], t, s, bh2)
        data = expand(1 + kept, x_t) * combine(weights, [value for _, value in past])
        mean = expand(there.beta / here.beta * kept, x_t) * x_t + data
        std = 0.0 if _is_last(path, s) else float(there.beta * (1 - kept**2).sqrt())
        return draw(mean, std), past


@final
class Churn(Stochastic):
    """EDM's stochastic sampler (Karras et al. 2022): noise up to t̂ > t, then a step of Heun's method from t̂ to s.

    With σ = β/α: σ̂ = (1+γ)σ and x̂_t = α̂(x_t/α + √(σ̂² − σ²) ξ). Heun's step is in t; γ = 0 is the solver "heun". The
    first step adds no noise, nor does one for which σ̂ would lie beyond t_max.

    Args:
        noise: see `Stochastic`.
        churn: γ in [0, √2 − 1]; EDM's S_churn divided by the number of steps.

    Raises:
        InputError: γ outside the range.
    """

    order = 2
    evaluations = 2

    def __init__(self, noise: Noise | None = None, churn: float = 0.2) -> None:
        super().__init__(noise)
        self.churn = within("edm:churn", churn, math.sqrt(2) - 1)

    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """See `Churn`; `past` holds the path, which the first evaluation tells."""
        for path in past:
            x_t, t = self._noisier(path, x_t, t, draw)
        estimate = field(x_t, t)
        slope, h = estimate.velocity, float(s - t)
        end = field(x_t + h * slope, s).velocity
        return x_t + h * (0.5 * slope + 0.5 * end), (estimate.schedule,)

    def _noisier(self, path: Schedule, x_t: Tensor, t: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        here = path.at(t)
        time = path.time_of(path.log_snr(t) - 2 * math.log1p(self.churn))
        if self.churn == 0 or time >= path.t_max:
            return x_t, t
        there = path.at(time)
        ratio, level = there.alpha / here.alpha, (there.beta / there.alpha) ** 2 - (here.beta / here.alpha) ** 2
        return draw(expand(ratio, x_t) * x_t, float(there.alpha * level.sqrt())), time


@final
class PredictorCorrector(Stochastic):
    """A step of `EulerMaruyama`, then one of Langevin dynamics at s (Song et al. 2021).

    x_s ← x_s − 2r²β ẑ + 2rβ ξ: a step of δ = 2(rβ)² along the score. (Song et al. scale it by the norms of ξ and of the
    score, whose ratio is about β; a fixed δ leaves the step a Gaussian.) None after the last step.

    Args:
        noise: see `Stochastic`.
        epsilon: of the predictor; see `EulerMaruyama`.
        scale: of the predictor; 0 is Euler's step of the ODE.
        snr: r in [0, 0.7]; 0 is the predictor alone.

    Raises:
        InputError: a number outside its range, or an unknown ε.
    """

    evaluations = 2

    def __init__(self, noise: Noise | None = None, epsilon: str = "sbdm", scale: float = 1.0, snr: float = 0.1) -> None:
        super().__init__(noise)
        self.predictor = EulerMaruyama(noise, epsilon, scale)
        self.snr = within("pc:snr", snr, 0.7)

    def march(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, draw: Draw, past: Past) -> tuple[Tensor, Past]:
        """See `PredictorCorrector`."""
        first: list[Estimate] = []

        def kept(x: Tensor, time: Tensor) -> Estimate:
            first.append(field(x, time))
            return first[0]

        x_s, _ = self.predictor.march(kept, x_t, t, s, draw, ())
        path = first[0].schedule
        if _is_last(path, s):
            return x_s, ()
        step = self.snr * float(path.at(s).beta)
        return draw(x_s - 2 * self.snr * step * field(x_s, s).noise, 2 * step), ()


def within(name: str, value: float, most: float) -> float:
    """`value`, if it lies in [0, most].

    Raises:
        InputError: it does not.
    """
    if not (0 <= value <= most and math.isfinite(value)):
        expected = f"from 0 to {most:.4g}" if math.isfinite(most) else "at least 0"
        raise InputError(f"{name} must be {expected}, received {value:g}.")
    return value


def _kept(path: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """e^(−η) = α_tβ_s/(α_sβ_t): the share of the noise of x_t that x_s may keep."""
    here, there = path.at(t), path.at(s)
    return here.alpha * there.beta / (there.alpha * here.beta)


def _is_last(path: Schedule, s: Tensor) -> bool:
    return float(s) <= path.t_min
