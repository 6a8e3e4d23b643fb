"""The order in which training sees its data: a function of (seed, step), so that resuming needs no state."""

from functools import lru_cache

import torch
from torch import Tensor

from rectiflow.base.randomness import Key


def batch_positions(step: int, batch: int) -> Tensor:
    """Global sample numbers of a step: step·batch … step·batch + batch − 1 (int64)."""
    return torch.arange(step * batch, (step + 1) * batch)


def batch_indices(step: int, batch: int, count: int, seed: int) -> Tensor:
    """Which of `count` samples the step takes: each epoch goes once through all, in an order keyed by (seed, epoch).

    Args:
        step: training step, ≥ 0.
        batch: B of the whole (global) batch.
        count: samples in the set.
        seed: seed of the run.
    """
    positions = batch_positions(step, batch)
    epochs = positions // count
    chosen = torch.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        chosen[inside] = _order(seed, epoch, count)[positions[inside] % count]
    return chosen


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    return Key(seed, "order", epoch).permutation(count)
