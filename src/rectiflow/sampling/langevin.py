"""Langevin dynamics at one noise level: the model as a score."""

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import AbstractFlow


def langevin(
    flow: AbstractFlow,
    x_t: Tensor,
    t: float,
    steps: int,
    size: float,
    key: Key,
    condition: Condition | None = None,
) -> Tensor:
    """Move x_t among the samples of p_t: x ← x + h·∇log p_t(x) + √(2h)·ξ, unadjusted.

    For p_t = N(0, ς²) its stationary variance is ς²/(1 − h/(2ς²)), so h is to be small beside the least ς².

    Args:
        flow: gives the score.
        x_t: B×….
        t: noise level, in (t_min, t_max].
        steps: number of steps; 0 returns x_t.
        size: h > 0.
        key: of the noise; its step counts on from there, and sample i's draws depend on i alone.
        condition: B conditions; None is the null condition.

    Raises:
        InputError: the flow has no valid score, and why; or steps < 0 or h ≤ 0.
    """
    if steps < 0 or not size > 0:
        raise InputError(f"expected steps ≥ 0 and a step size > 0, received {steps} and {size}.")
    time, index = torch.tensor(t, dtype=torch.float64), torch.arange(len(x_t))
    with torch.no_grad():
        for step in range(steps):
            noise = Key(key.seed, key.purpose, key.step + step).normal(index, x_t.shape[1:]).to(x_t)
            x_t = x_t + size * flow.estimate(x_t, time, condition).score + (2 * size) ** 0.5 * noise
    return x_t
