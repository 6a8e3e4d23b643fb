"""Solvers of dx = v dt from t = 1 to t = 0, by name. A method is data; the loop lies in `sample`."""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.flow.flow import expand
from rectiflow.sampling.adaptive import DormandPrince
from rectiflow.sampling.exponential import ExponentialAdams, UniPC, bh2, exact
from rectiflow.sampling.method import Field, History, Solver, combine, quadrature
from rectiflow.sampling.settings import described
from rectiflow.sampling.stochastic import (
    Ancestral,
    Churn,
    EulerMaruyama,
    Noise,
    PredictorCorrector,
    StochasticDPM,
)


@final
class RungeKutta(Solver):
    """An explicit Runge-Kutta method, given by its Butcher tableau.

    Args:
        stages: the rows of A below the diagonal, the first one empty.
        weights: b.
        order: global order.
    """

    def __init__(self, stages: Sequence[Sequence[float]], weights: Sequence[float], order: int) -> None:
        self.stages, self.weights, self.order = stages, weights, order
        self.evaluations = len(weights)

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        h = float(s - t)
        slopes: list[Tensor] = []
        for row in self.stages:
            x = x_t + h * combine(row, slopes) if row else x_t
            slopes.append(field(x, s if sum(row) == 1 else t + h * sum(row)).velocity)
        return x_t + h * combine(self.weights, slopes), ()


@final
class AdamsBashforth(Solver):
    """The linear multistep method of variable step that integrates a polynomial through the last velocities.

    One evaluation a step. The first steps, which have no history, are of lower order; from order 3 on the first is one
    of Heun's, since an Euler step would leave the whole at order 2.

    Args:
        order: number of velocities used, ≥ 1.
        growth: where a step is more than this times the last one, two velocities at most are used: with few steps on a
            heavily shifted grid a parabola is far off by the end of the step. Infinite is no bound.
    """

    evaluations = 1

    def __init__(self, order: int, growth: float = math.inf) -> None:
        self.order, self.growth, self.starting = order, growth, int(order > 2)

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        slope = field(x_t, t).velocity
        if not history and self.starting:
            h = float(s - t)
            end = field(x_t + h * slope, s).velocity
            return x_t + h / 2 * (slope + end), ((float(t), slope),)
        history = ((float(t), slope), *history)[: self.order]
        grows = len(history) > 2 and float(t - s) > self.growth * (history[1][0] - float(t))
        used = history[:2] if grows else history
        weights = adams_weights([time for time, _ in used], float(t), float(s))
        return x_t + combine(weights, [slope for _, slope in used]), history


@final
class PredictEvaluateCorrect(Solver):
    """Two-step Adams-Bashforth, corrected by the trapezoid of the velocity that the next step begins with anyway.

    So the correction of a step is made when the next begins, at one evaluation a step, and the last step has none.
    """

    order = 2
    evaluations = 1

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s; the history holds the last velocity and the increment that was predicted from it."""
        slope = field(x_t, t).velocity
        nodes, slopes = [float(t)], [slope]
        if history:
            (before, earlier), (_, predicted) = history
            # What a hook changed stays changed: the difference is added, not the corrected state put in its place.
            x_t = x_t + (float(t) - before) / 2 * (earlier + slope) - predicted
            nodes, slopes = [*nodes, before], [*slopes, earlier]
        increment = combine(adams_weights(nodes, float(t), float(s)), slopes)
        return x_t + increment, ((float(t), slope), (float(t), increment))


@final
class TrigAdams(Solver):
    """Adams-Bashforth in the angle φ = atan2(β, α), in which x̃ = x/√(α²+β²) is on the trigonometric path.

    dx̃/dφ = cos φ·ẑ − sin φ·x̂ vanishes for data N(0, I): there it is exact at any number of steps.

    Args:
        order: number of slopes used, ≥ 1.
    """

    evaluations = 1

    def __init__(self, order: int) -> None:
        self.order = order

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s; the history holds angles."""
        estimate = field(x_t, t)
        here, there = estimate.schedule.at(t), estimate.schedule.at(s)
        size, size_s = torch.hypot(here.alpha, here.beta), torch.hypot(there.alpha, there.beta)
        slope = expand(here.alpha / size, x_t) * estimate.noise - expand(here.beta / size, x_t) * estimate.data
        angle, angle_s = (float(torch.atan2(at.beta, at.alpha)) for at in (here, there))
        history = ((angle, slope), *history)[: self.order]
        weights = adams_weights([node for node, _ in history], angle, angle_s)
        x = x_t / expand(size, x_t) + combine(weights, [slope for _, slope in history])
        return expand(size_s, x_t) * x, history


def adams_weights(nodes: Sequence[float], t: float, s: float) -> list[float]:
    """Weights w with Σ w_i p(node_i) = ∫_t^s p for each polynomial p of degree < len(nodes).

    For two nodes and h = s − t this is h·(1 + ρ/2, −ρ/2), ρ the ratio of this step to the last.
    """
    h = s - t
    moments = 1 / torch.arange(1, len(nodes) + 1, dtype=torch.float64)
    return [h * weight for weight in quadrature([(node - t) / h for node in nodes], moments)]


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": lambda: RungeKutta([[]], [1.0], order=1),
    "heun": lambda: RungeKutta([[], [1.0]], [0.5, 0.5], order=2),
    "midpoint": lambda: RungeKutta([[], [0.5]], [0.0, 1.0], order=2),
    "rk4": lambda: RungeKutta([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], order=4),
    "ab2": lambda: AdamsBashforth(2),
    "ab2-pec": PredictEvaluateCorrect,
    "dpm++2m": lambda: ExponentialAdams(2, bh2),
    "ab3": lambda: AdamsBashforth(3),
    "unipc2": lambda: UniPC(2),
    "unipc3": lambda: UniPC(3),
    "exp-ab2": lambda: ExponentialAdams(2, exact),
    "exp-ab3": lambda: ExponentialAdams(3, exact),
    "trig-ab1": lambda: TrigAdams(1),
    "trig-ab2": lambda: TrigAdams(2),
    "rk45": DormandPrince,
    "sde": EulerMaruyama,
    "ddpm": Ancestral,
    "sde-dpm++2m": StochasticDPM,
    "edm": Churn,
    "pc": PredictorCorrector,
    # The most accurate for its evaluations on the uniform grid (benchmarks/solvers.py), made safe on others.
    "fast": lambda: AdamsBashforth(3, growth=1.5),
}


def solver(description: str, noise: Noise | None = None) -> Solver:
    """The solver of that name, with settings if any are given: "rk45", "ddpm:eta=0.5", "sde:epsilon=t,scale=0.5".

    Args:
        description: NAME or NAME:SETTING=VALUE,…; the settings are the arguments of the solver's class.
        noise: what a stochastic solver draws; that of seed 0 if left out.

    Raises:
        InputError: no such solver or setting, or a value that it cannot have.
    """
    return described("solver", description, SOLVERS, {"noise": noise})
