"""Guidance: from the estimates of several branches to the one that the solver follows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.flow import AbstractFlow, Estimate


@dataclass(frozen=True)
class Branch:
    """One evaluation that a guidance asks for.

    Args:
        condition: conditions of its rows.
        rows: int64 indices into the batch; None for the whole batch.
    """

    condition: Condition
    rows: Tensor | None = None


class Guidance(ABC):
    """Works with every solver; its state changes once per accepted step, not once per evaluation."""

    def init(self, shape: Sequence[int]) -> Any:
        """State before the first step, for a batch of this shape."""
        return None

    @abstractmethod
    def branches(self, condition: Condition, t: Tensor) -> list[Branch]:
        """What to evaluate beside the condition itself at t; an empty list costs nothing."""

    @abstractmethod
    def __call__(self, estimates: Sequence[Estimate], x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> Estimate:
        """The estimate to follow on the step from t to s.

        Args:
            estimates: of the condition itself first, then of each branch.
            x_t: B×….
            t: time of the estimates.
            s: end of the step.
            state: see `init`.
        """

    def commit(self, estimate: Estimate, state: Any) -> Any:
        """State after an accepted step whose first guided estimate was `estimate`."""
        return state


@final
class ClassifierFree(Guidance):
    """v = (1+w)·v_y − w·v_∅ (Ho & Salimans 2022), every channel.

    Args:
        weight: w ≥ 0, one number or one per sample (B); 0 is none and never evaluates v_∅. Others' guidance scale
            is 1 + w.
        interval: (low, high), 0 ≤ low ≤ high ≤ 1: at times outside it v_∅ is not evaluated and v_y is followed
            (Kynkäänniemi et al. 2024); (0, 1) is everywhere.

    Raises:
        InputError: a negative w, or an interval that is none.
    """

    def __init__(self, weight: float | Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        self.weight = torch.as_tensor(weight, dtype=torch.float64)
        if bool((self.weight < 0).any()) or not bool(torch.isfinite(self.weight).all()):
            raise InputError(f"guidance w must be finite and ≥ 0 (0 is none), received {weight}.")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise InputError(
                f"the guidance interval is two times, 0 ≤ low ≤ high ≤ 1 (0 1 is all), received {interval}."
            )
        self.interval = interval

    def _rows(self, count: int, t: Tensor) -> Tensor:
        low, high = self.interval
        return torch.nonzero((self.weight.expand(count) > 0) & (low <= t) & (t <= high)).flatten()

    def branches(self, condition: Condition, t: Tensor) -> list[Branch]:
        """The null condition, for the samples with w > 0, if t lies in the interval."""
        rows = self._rows(len(condition), t)
        return [Branch(condition.select(rows).null(), rows)] if len(rows) else []

    def __call__(self, estimates: Sequence[Estimate], x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> Estimate:
        """(1+w)·v_y − w·v_∅; samples with w = 0 keep v_y bit for bit."""
        if len(estimates) == 1:
            return estimates[0]
        given, null = estimates
        rows = self._rows(len(x_t), t).to(x_t.device)
        w = self.weight.expand(len(x_t)).to(x_t)[rows].reshape(-1, *[1] * (x_t.dim() - 1))
        value = given.value.clone()
        # Conversions are affine in the value at one (x_t, t): combining values combines velocities.
        value[rows] = (1 + w) * given.value[rows] - w * null.value
        return replace(given, value=value)


def guided(
    flow: AbstractFlow,
    guidance: Guidance | None,
    condition: Condition | None,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    state: Any,
) -> Estimate:
    """Evaluate every branch in one batch and combine them; t is B or scalar."""
    if guidance is None or condition is None:
        return flow.estimate(x_t, t, condition)
    branches = guidance.branches(condition, t)
    rows = [torch.arange(len(x_t)) if branch.rows is None else branch.rows for branch in branches]
    batch = torch.cat([x_t, *[x_t[index.to(x_t.device)] for index in rows]])
    joined = condition.concatenate([condition, *[branch.condition.to(condition.labels.device) for branch in branches]])
    times = torch.cat([t, *[t[index] for index in rows]]) if t.dim() else t
    both = flow.estimate(batch, times, joined)
    ends = torch.tensor([len(x_t), *[len(index) for index in rows]]).cumsum(0).tolist()
    parts = [both.select(slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    return guidance(parts, x_t, t, s, state)
