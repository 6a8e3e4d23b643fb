"""What a solver is: one step from t to s. The loop lies in `sample`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rectiflow.flow.flow import Estimate

Field = Callable[[Tensor, Tensor], Estimate]
History = tuple[Any, ...]


@dataclass(frozen=True)
class Transition:
    """A Gaussian that a step drew from.

    Args:
        mean: B×….
        std: one number for every sample and dimension, > 0.
        value: what was drawn, B×….
    """

    mean: Tensor
    std: float
    value: Tensor

    def log_density(self, value: Tensor | None = None) -> Tensor:
        """Natural log of the density at `value` (what was drawn if left out), float64 B; differentiable in the mean."""
        drawn = self.value if value is None else value
        error = (drawn.double() - self.mean.double()).flatten(1) / self.std
        return -0.5 * (error**2).sum(1) - error.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


class Solver(ABC):
    """One step of a method. Subclasses are final.

    Attributes:
        order: global order of convergence; of the law, not the path, where a step is random.
        evaluations: evaluations of the flow per step; 0 if a tolerance decides.
        starting: evaluations that the first step makes beyond these.
    """

    order: int
    evaluations: int
    starting: int = 0

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

    def intervals(self, steps: int) -> int:
        """How many intervals to divide the time into if `steps` are asked for: 1 if a tolerance decides."""
        return steps if self.evaluations else min(steps, 1)

    def transitions(self, history: History) -> tuple[Transition, ...]:
        """The Gaussians that the step which returned `history` drew from; none for a deterministic step."""
        return ()


def combine(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Σ w_i·term_i; terms of weight 0 are left out."""
    first, *rest = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return sum(rest, start=first)


def quadrature(nodes: Sequence[float], moments: Tensor) -> list[float]:
    """Weights w with Σ w_i·node_i^k = moments[k], k = 0 … len(nodes) − 1 (float64)."""
    scaled = torch.tensor(nodes, dtype=torch.float64)
    return torch.linalg.solve(scaled[None, :] ** torch.arange(len(nodes))[:, None], moments).tolist()
