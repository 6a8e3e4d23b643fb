"""Which samples a step takes: a function of (seed, step) alone, so that resuming needs no state."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.randomness import Key


def batch_positions(step: int, batch: int) -> Tensor:
    """Global sample numbers of a step: step·batch … step·batch + batch − 1 (int64)."""
    return torch.arange(step * batch, (step + 1) * batch)


@final
class PieceOrder:
    """An order of rows that lie in pieces, such that those taken one after the other come from few pieces.

    In each epoch the pieces are permuted and cut into windows, and the rows of a window permuted together: each row has
    its turn once. What is held of an epoch is the order of its pieces, and those of the rows in a few windows.

    Args:
        sizes: rows of each piece, P of them, ≥ 0; row i of the whole is counted through the pieces in this order.
        window: pieces in a window, ≥ 1.
    """

    def __init__(self, sizes: np.ndarray, window: int) -> None:
        self.sizes, self.window = torch.from_numpy(sizes.astype(np.int64)), window
        self._starts = self.sizes.cumsum(0) - self.sizes
        self._epochs: dict[tuple[int, str, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, seed: int, purpose: str, epoch: int, positions: Tensor) -> Tensor:
        """The rows at `positions` (int64, each in [0, N)) of an epoch."""
        pieces, ends = self._laid(seed, purpose, epoch)
        places = torch.searchsorted(ends, positions, right=True)
        windows = places // self.window
        chosen = torch.empty_like(positions)
        for number in windows.unique().tolist():
            inside = windows == number
            first, last = number * self.window, min((number + 1) * self.window, len(pieces))
            began = int(ends[first - 1]) if first else 0
            rows = _window(seed, f"{purpose} of window {number}", epoch, int(ends[last - 1]) - began)
            at = rows[positions[inside] - began] + began
            place = torch.searchsorted(ends, at, right=True)
            chosen[inside] = self._starts[pieces[place]] + at - (ends[place] - self.sizes[pieces[place]])
        return chosen

    def _laid(self, seed: int, purpose: str, epoch: int) -> tuple[Tensor, Tensor]:
        """The pieces of an epoch in their order, and where each of them ends."""
        key = seed, purpose, epoch
        if key not in self._epochs:
            pieces = Key(seed, f"{purpose} of pieces", epoch).permutation(len(self.sizes))
            newest = list(self._epochs.items())[-1:]
            self._epochs = dict([*newest, (key, (pieces, self.sizes[pieces].cumsum(0)))])
        return self._epochs[key]


def batch_indices(
    step: int, batch: int, count: int, seed: int, purpose: str = "order", order: PieceOrder | None = None
) -> Tensor:
    """Which of `count` samples the step takes: each epoch goes once through all, in an order keyed by (seed, epoch).

    Args:
        step: training step, ≥ 0.
        batch: B of the whole (global) batch.
        count: samples in the set.
        seed: seed of the run.
        purpose: of the order's draws.
        order: of the samples of an epoch; None permutes all of them together.
    """
    positions = batch_positions(step, batch)
    epochs = positions // count
    chosen = torch.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        places = positions[inside] % count
        if order is None:
            chosen[inside] = _order(seed, purpose, epoch, count)[places]
        else:
            chosen[inside] = order(seed, purpose, epoch, places)
    return chosen


def bucket_indices(
    step: int, batch: int, counts: Sequence[int], seed: int, order: PieceOrder | None = None
) -> tuple[int, Tensor]:
    """From which bucket the step takes its batch, and which of its samples.

    After e epochs bucket k has had b_k(e) = ⌊(e·n_k + φ_k)/B⌋ batches, with φ_k in [0, B) drawn once, so that it is
    never a batch away from its share; epoch e has Σ_k (b_k(e+1) − b_k(e)) steps, in an order keyed by (seed, e). Within
    a bucket batches go on one from the other through `batch_indices`: its samples are taken once each before any is
    taken again; none is left out, none is filled in.

    Args:
        step: training step, ≥ 0.
        batch: B.
        counts: samples in each bucket, n_k ≥ 1.
        seed: seed of the run.
        order: see `batch_indices`; of a set in one bucket.
    """
    if len(counts) == 1:
        return 0, batch_indices(step, batch, counts[0], seed, order=order)
    draws = Key(seed, "bucket phase").uniform(torch.arange(len(counts)))
    phases = (draws * batch).long().tolist()

    def batches(epoch: int) -> list[int]:
        return [(epoch * count + phase) // batch for count, phase in zip(counts, phases, strict=True)]

    # Σ b_k(e) lies within K of e·N/B.
    total = sum(counts)
    first = max(0, step * batch // total - len(counts) * batch // total - 1)
    last = (step + len(counts)) * batch // total + 1
    epoch = first + bisect_right(range(first, last + 1), step, key=lambda e: sum(batches(e))) - 1
    done, then = batches(epoch), batches(epoch + 1)
    slots = _slots(seed, epoch, tuple(b - a for a, b in zip(done, then, strict=True)))
    place = step - sum(done)
    number = int(slots[place])
    rank = int((slots[:place] == number).sum())
    return number, batch_indices(done[number] + rank, batch, counts[number], seed, f"order of bucket {number}")


@lru_cache(maxsize=64)
def _order(seed: int, purpose: str, epoch: int, count: int) -> Tensor:
    return Key(seed, purpose, epoch).permutation(count)


@lru_cache(maxsize=8)
def _window(seed: int, purpose: str, epoch: int, count: int) -> Tensor:
    return Key(seed, purpose, epoch).permutation(count)


@lru_cache(maxsize=4)
def _slots(seed: int, epoch: int, batches: tuple[int, ...]) -> Tensor:
    """The bucket of each step of an epoch."""
    numbers = torch.repeat_interleave(torch.arange(len(batches)), torch.tensor(batches))
    return numbers[Key(seed, "order of buckets", epoch).permutation(len(numbers))]
