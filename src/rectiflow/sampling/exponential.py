"""Exponential multistep methods: the data prediction is integrated exactly in ℓ = log(α/β), as a polynomial in it.

x_s = (β_s/β_t)x_t + α_s ∫₀^η e^(u−η) x̂(u) du, with u = ℓ − ℓ_t and η = ℓ_s − ℓ_t. Where ℓ is infinite, as at both
ends of the rectified path, x̂ is held at its value at t: first order, which is DDIM. Where a step in ℓ is more than
1.5 times the last, as at the clean end of a uniform grid, two predictions at most are used: a parabola goes astray.
"""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.flow.flow import expand
from rectiflow.flow.schedule import Schedule
from rectiflow.sampling.method import Field, History, Solver, combine, quadrature

Moments = Callable[[float, int], Tensor]
_GROWTH = 1.5


@final
class ExponentialAdams(Solver):
    """Adams-Bashforth in ℓ on the data prediction: with `bh2` of order 2 this is DPM-Solver++(2M) (Lu et al. 2022).

    Args:
        order: number of predictions used, ≥ 1.
        moments: of the weight e^(u−η): `exact`, or `bh2`.
    """

    evaluations = 1

    def __init__(self, order: int, moments: Moments) -> None:
        self.order, self.moments = order, moments

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s."""
        estimate = field(x_t, t)
        history = ((float(t), estimate.data), *history)[: self.order]
        times, values = _used(estimate.schedule, history, s)
        weights = data_weights(estimate.schedule, times, t, s, self.moments)
        return _scaled(estimate.schedule, x_t, t, s) + combine(weights, values), history


@final
class UniPC(Solver):
    """UniPC with bh2 on the data prediction (Zhao et al. 2023).

    The step's prediction is that of `ExponentialAdams`; when the next step begins, the evaluation made there anyway
    joins the polynomial and x is corrected, which adds one order. The last step stays as predicted. A step from
    infinite ℓ is corrected by half the change of x̂, the weight that bh2 gives to two nodes.

    Args:
        order: p, number of predictions in the predictor, ≥ 1; the method is of order p + 1.
    """

    evaluations = 1

    def __init__(self, order: int) -> None:
        self.nodes, self.order = order, order + 1

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s; the history holds the last predictions, after the increment that they gave."""
        estimate = field(x_t, t)
        path, data, past = estimate.schedule, estimate.data, history[1:]
        if history:
            times, values = _used(path, past, t)
            before = torch.full_like(t, times[0])
            weights = data_weights(path, [*times, float(t)], before, t, bh2)
            if not path.log_snr(before).isfinite():
                weights = [sum(weights) / 2, *[0.0] * (len(times) - 1), sum(weights) / 2]
            # What a hook changed stays changed: the difference is added, not the corrected state put in its place.
            x_t = x_t + combine(weights, [*values, data]) - history[0][1]
        past = ((float(t), data), *past)[: self.nodes]
        times, values = _used(path, past, s)
        increment = combine(data_weights(path, times, t, s, bh2), values)
        return _scaled(path, x_t, t, s) + increment, ((float(t), increment), *past)


def exact(eta: float, count: int) -> Tensor:
    """∫₀^η e^(u−η) (u/η)^k du for k = 0 … count − 1."""
    if eta < 1:
        terms = [math.exp(-eta) * eta ** (j + 1) / math.factorial(j) for j in range(20)]
        values = [sum(term / (k + j + 1) for j, term in enumerate(terms)) for k in range(count)]
    else:
        values = [-math.expm1(-eta)]
        for k in range(1, count):
            values.append(1 - k / eta * values[-1])
    return torch.tensor(values, dtype=torch.float64)


def bh2(eta: float, count: int) -> Tensor:
    """As `exact`, but for two nodes the second is half the first, as in UniPC with B(h) = e^h − 1."""
    moments = exact(eta, count)
    return moments[0] * torch.tensor([1.0, 0.5], dtype=torch.float64) if count == 2 else moments


def data_weights(schedule: Schedule, times: Sequence[float], t: Tensor, s: Tensor, moments: Moments) -> list[float]:
    """Weight of each data prediction in x_s − (β_s/β_t)x_t; α_s(1 − e^(−η)) in all.

    Args:
        schedule: the path.
        times: of the predictions; t first.
        t: beginning of the step.
        s: its end.
        moments: of the weight e^(u−η).
    """
    here, there = schedule.at(t), schedule.at(s)
    total = float(there.alpha - here.alpha * there.beta / here.beta)
    ends = (schedule.log_snr(torch.stack([t, s])) / 2).tolist()
    if not all(map(math.isfinite, ends)):
        return [total, *[0.0] * (len(times) - 1)]
    eta = ends[1] - ends[0]
    logs = (schedule.log_snr(torch.tensor(times, dtype=torch.float64)) / 2).tolist()
    nodes = {i: (log - ends[0]) / eta for i, log in enumerate(logs) if math.isfinite(log)}
    found = quadrature(list(nodes.values()), moments(eta, len(times))[: len(nodes)])
    known = dict(zip(nodes, found, strict=True))
    return [float(there.alpha) * known.get(i, 0.0) for i in range(len(times))]


def _used(schedule: Schedule, past: History, s: Tensor) -> tuple[list[float], list[Tensor]]:
    """Times and values of the predictions, newest first, that a step from the newest to s uses."""
    times, values = [time for time, _ in past], [value for _, value in past]
    if len(past) > 2:
        end, now, before = schedule.log_snr(torch.tensor([float(s), *times[:2]], dtype=torch.float64)).tolist()
        if end - now > _GROWTH * (now - before):
            return times[:2], values[:2]
    return times, values


def _scaled(schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return expand(schedule.at(s).beta / schedule.at(t).beta, x_t) * x_t
