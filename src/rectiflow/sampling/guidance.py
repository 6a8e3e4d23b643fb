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
        condition: conditions of its rows; None is unconditional.
        rows: int64 indices into the batch; None for the whole batch.
        flow: another flow to ask, with a schedule of the same log-SNRs; None is the one that is guided.
    """

    condition: Condition | None
    rows: Tensor | None = None
    flow: AbstractFlow | None = None


class Guidance(ABC):
    """Works with every solver; its state changes once per accepted step, not once per evaluation.

    Attributes:
        unconditional: whether it can guide a flow that is given no condition.
    """

    unconditional: bool = False

    def init(self, shape: Sequence[int]) -> Any:
        """State before the first step, for a batch of this shape."""
        return None

    def begin(self, t: Tensor, s: Tensor, state: Any) -> Any:
        """State for the evaluations of the step from t to s."""
        return state

    @abstractmethod
    def branches(self, condition: Condition | None, count: int, t: Tensor) -> list[Branch]:
        """What to evaluate beside the B = `count` samples themselves at t; an empty list costs nothing."""

    @abstractmethod
    def __call__(self, estimates: Sequence[Estimate], x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> Estimate:
        """The estimate to follow on the step from t to s.

        Args:
            estimates: of the samples themselves first, then of each branch.
            x_t: B×….
            t: time of the estimates.
            s: end of the step.
            state: see `init`.
        """

    def commit(self, estimate: Estimate, state: Any) -> Any:
        """State after an accepted step whose first guided estimate was `estimate`."""
        return state


class Weighted(Guidance):
    """Guidance by one other estimate for each sample, with a weight and an interval of times.

    Args:
        weight: w ≥ 0, one number or one per sample (B); 0 is none and evaluates nothing else. Others' guidance scale
            is 1 + w.
        interval: (low, high), 0 ≤ low ≤ high ≤ 1: at times outside it nothing else is evaluated and v_y is followed
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

    @abstractmethod
    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """The estimate to follow, for the guided samples alone.

        Args:
            given: of the samples themselves, b×….
            other: of the branch.
            w: their weights, b×1×…, of the dtype of x_t.
            state: of the whole batch; see `init`.
        """

    def _rows(self, count: int, t: Tensor) -> Tensor:
        low, high = self.interval
        return torch.nonzero((self.weight.expand(count) > 0) & (low <= t) & (t <= high)).flatten()

    def branches(self, condition: Condition | None, count: int, t: Tensor) -> list[Branch]:
        """The null condition, for the samples with w > 0, if t lies in the interval."""
        rows = self._rows(count, t)
        return [Branch(condition.select(rows).null(), rows)] if len(rows) and condition is not None else []

    def __call__(self, estimates: Sequence[Estimate], x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> Estimate:
        """Guided samples follow `combine`; samples with w = 0 keep v_y bit for bit."""
        if len(estimates) == 1:
            return estimates[0]
        given, other = estimates
        rows = self._rows(len(x_t), t).to(x_t.device)
        w = self.weight.expand(len(x_t)).to(x_t)[rows].reshape(-1, *[1] * (x_t.dim() - 1))
        found = self.combine(given.select(rows), other, w, None if state is None else state[rows])
        value = given.get(found.prediction).clone()
        value[rows] = found.value
        memory = None
        if found.memory is not None:
            memory = torch.zeros_like(value)
            memory[rows] = found.memory
        return replace(given, value=value, prediction=found.prediction, memory=memory)


@final
class ClassifierFree(Weighted):
    """v = (1+w)·v_y − w·v_∅ (Ho & Salimans 2022), every channel; arguments as for `Weighted`."""

    def combine(self, given: Estimate, other: Estimate, w: Tensor, state: Any) -> Estimate:
        """(1+w)·v_y − w·v_∅."""
        # Conversions are affine in the value at one (x_t, t): combining values combines velocities.
        return replace(given, value=(1 + w) * given.value - w * other.value)


def guided(
    flow: AbstractFlow,
    guidance: Guidance | None,
    condition: Condition | None,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    state: Any,
) -> Estimate:
    """Evaluate every branch of one flow in one batch and combine them; t is B or scalar."""
    if guidance is None or (condition is None and not guidance.unconditional):
        return flow.estimate(x_t, t, condition)
    branches = [Branch(condition), *guidance.branches(condition, len(x_t), t)]
    parts: dict[int, Estimate] = {}
    for asked in {id(branch.flow): branch.flow for branch in branches}.values():
        numbers = [number for number, branch in enumerate(branches) if branch.flow is asked]
        parts |= dict(zip(numbers, _together(asked or flow, [branches[n] for n in numbers], x_t, t), strict=True))
    return guidance([parts[number] for number in range(len(branches))], x_t, t, s, state)


def _together(flow: AbstractFlow, branches: Sequence[Branch], x_t: Tensor, t: Tensor) -> list[Estimate]:
    """The estimates of several branches of one flow, in one batch."""
    rows = [torch.arange(len(x_t)) if branch.rows is None else branch.rows for branch in branches]
    if len(branches) == 1 and branches[0].rows is None:
        return [flow.estimate(x_t, t, branches[0].condition)]
    conditions = [branch.condition for branch in branches if branch.condition is not None]
    joined = None
    if conditions:
        joined = conditions[0].concatenate([condition.to(conditions[0].labels.device) for condition in conditions])
    times = torch.cat([t[index] for index in rows]) if t.dim() else t
    both = flow.estimate(torch.cat([x_t[index.to(x_t.device)] for index in rows]), times, joined)
    ends = torch.tensor([len(index) for index in rows]).cumsum(0).tolist()
    return [both.select(slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
