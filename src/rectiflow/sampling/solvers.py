"""Solvers of dx = v dt from t = 1 to t = 0: one step from t to s. A method is data; the loop lies in `sample`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import unknown

Velocity = Callable[[Tensor, Tensor], Tensor]
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
    def step(self, velocity: Velocity, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s.

        Args:
            velocity: v(x, t).
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

    def step(self, velocity: Velocity, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        h = float(s - t)
        slopes: list[Tensor] = []
        for row in self.stages:
            x = x_t + h * _combine(row, slopes) if row else x_t
            slopes.append(velocity(x, s if sum(row) == 1 else t + h * sum(row)))
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

    def step(self, velocity: Velocity, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        history = ((float(t), velocity(x_t, t)), *history)[: self.order]
        weights = adams_weights([time for time, _ in history], float(t), float(s))
        return x_t + _combine(weights, [slope for _, slope in history]), history


def adams_weights(nodes: Sequence[float], t: float, s: float) -> list[float]:
    """Weights w with Σ w_i p(node_i) = ∫_t^s p for each polynomial p of degree < len(nodes).

    For two nodes and h = s − t this is h·(1 + ρ/2, −ρ/2), ρ the ratio of this step to the last.
    """
    h = s - t
    scaled = torch.tensor([(node - t) / h for node in nodes], dtype=torch.float64)
    powers = torch.arange(len(nodes), dtype=torch.float64)
    return (h * torch.linalg.solve(scaled[None, :] ** powers[:, None], 1 / (powers + 1))).tolist()


def _combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": lambda: RungeKutta([[]], [1.0], order=1),
    "heun": lambda: RungeKutta([[], [1.0]], [0.5, 0.5], order=2),
    "ab2": lambda: AdamsBashforth(2),
}


def solver(name: str) -> Solver:
    """The solver of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name]()
