"""Solvers of dx = v dt from t = 1 to t = 0: one step from t to s. A method is data; the loop lies in `sample`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import unknown
from rectiflow.flow.flow import Estimate, expand

Field = Callable[[Tensor, Tensor], Estimate]
History = tuple[tuple[float, Tensor], ...]


class Solver(ABC):
    """One step of a method. Subclasses are final.

    Attributes:
        order: global order of convergence.
        evaluations: evaluations of the flow per step.
    """

    order: int
    evaluations: int

    @abstractmethod
    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s.

        Args:
            field: what the flow estimates at (x, t).
            x_t: B×….
            t: float64 scalar.
            s: float64 scalar, the end of the step.
            history: what the method returned from the step before; empty at first.

        Returns:
            x_s and the history for the next step.
        """


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
            x = x_t + h * _combine(row, slopes) if row else x_t
            slopes.append(field(x, s if sum(row) == 1 else t + h * sum(row)).velocity)
        return x_t + h * _combine(self.weights, slopes), ()


@final
class AdamsBashforth(Solver):
    """The linear multistep method of variable step that integrates a polynomial through the last velocities.

    One evaluation a step; the first steps, which have no history, are of lower order.

    Args:
        order: number of velocities used, ≥ 1.
    """

    evaluations = 1

    def __init__(self, order: int) -> None:
        self.order = order

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        history = ((float(t), field(x_t, t).velocity), *history)[: self.order]
        weights = adams_weights([time for time, _ in history], float(t), float(s))
        return x_t + _combine(weights, [slope for _, slope in history]), history


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
        increment = _combine(adams_weights(nodes, float(t), float(s)), slopes)
        return x_t + increment, ((float(t), slope), (float(t), increment))


@final
class DPMSolver(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022): the data prediction is integrated exactly in ℓ = log(α/β), linearly in it.

    x_s = (β_s/β_t)x_t + α_s(1 − e^(−η))D with η = ℓ_s − ℓ_t, r the ratio of the last η to this one, and
    D = x̂_t + (x̂_t − x̂_before)/(2r). Where ℓ is infinite, as at the ends of the rectified path, D = x̂_t: first order.
    """

    order = 2
    evaluations = 1

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        estimate = field(x_t, t)
        data, path = estimate.data, estimate.schedule
        here, there = path.at(t), path.at(s)
        blend = data
        if history:
            ((before, earlier),) = history
            past, present, future = path.log_snr(torch.stack([torch.full_like(t, before), t, s])).tolist()
            # 1/(2r) = 0 where the step before began at infinite ℓ, or this one ends there.
            weight = (future - present) / (present - past) / 2 if future < torch.inf and past > -torch.inf else 0.0
            blend = data + weight * (data - earlier) if weight else data
        ratio = there.beta / here.beta
        x_s = expand(ratio, x_t) * x_t + expand(there.alpha - here.alpha * ratio, x_t) * blend
        return x_s, ((float(t), data),)


def adams_weights(nodes: Sequence[float], t: float, s: float) -> list[float]:
    """Weights w with Σ w_i p(node_i) = ∫_t^s p for each polynomial p of degree < len(nodes).

    For two nodes and h = s − t this is h·(1 + ρ/2, −ρ/2), ρ the ratio of this step to the last.
    """
    h = s - t
    scaled = torch.tensor([(node - t) / h for node in nodes], dtype=torch.float64)
    powers = torch.arange(len(nodes), dtype=torch.float64)
    return (h * torch.linalg.solve(scaled[None, :] ** powers[:, None], 1 / (powers + 1))).tolist()


def _combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    first, *rest = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return sum(rest, start=first)


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": lambda: RungeKutta([[]], [1.0], order=1),
    "heun": lambda: RungeKutta([[], [1.0]], [0.5, 0.5], order=2),
    "midpoint": lambda: RungeKutta([[], [0.5]], [0.0, 1.0], order=2),
    "rk4": lambda: RungeKutta([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], order=4),
    "ab2": lambda: AdamsBashforth(2),
    "ab2-pec": PredictEvaluateCorrect,
    "dpm++2m": DPMSolver,
}


def solver(name: str) -> Solver:
    """The solver of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name]()
