"""Rows of a tensor that the processes of a job make together, each its share of them.

What a row is depends on its number alone, so it does not matter who makes it. Rows go from process to process as they
lie in memory, by the CPU.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from rectiflow.base.ranks import barrier, first, gather, share, world

Make = Callable[[int, int], Tensor]
Spread = Callable[[Make, int], Tensor]
_PIECE = 2**28  # bytes on their way at once


def alone(make: Make, count: int) -> Tensor:
    """All rows by this process, whatever the others do.

    Args:
        make: (start, stop) to the rows start … stop−1, on the CPU.
        count: how many there are.
    """
    return make(0, count)


def to_first(make: Make, count: int) -> Tensor:
    """All rows in the first process, 0 rows in the others; every process has to ask, and they begin together.

    Args:
        make: see `alone`.
        count: how many there are.
    """
    if world() == 1 or not count:
        return make(0, count)
    mine = _made(make, count)
    if not first():
        for piece in _pieces(mine):
            dist.send(piece, 0)
        return mine[:0]
    rows = mine.new_empty(count, *mine.shape[1:])
    rows[share(count)] = mine
    for other in range(1, world()):
        for piece in _pieces(rows[share(count, other)]):
            dist.recv(piece, other)
    return rows


def to_all(make: Make, count: int) -> Tensor:
    """All rows in every process, each of which has to ask; see `to_first`."""
    if world() == 1 or not count:
        return make(0, count)
    mine = _made(make, count)
    rows = mine.new_empty(count, *mine.shape[1:])
    rows[share(count)] = mine
    for other in range(world()):
        for piece in _pieces(rows[share(count, other)]):
            dist.broadcast(piece, other)
    return rows


def _made(make: Make, count: int) -> Tensor:
    """This process's rows; where there are none, still of the right shape."""
    barrier()
    part = share(count)
    mine = make(part.start, part.stop).contiguous() if part.stop > part.start else None
    kinds = gather(None if mine is None else (tuple(mine.shape[1:]), mine.dtype))
    shape, dtype = next(kind for kind in kinds if kind is not None)
    return torch.empty(0, *shape, dtype=dtype) if mine is None else mine


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """The rows a few at a time, where they lie."""
    if len(rows):
        yield from rows.split(max(1, _PIECE // (rows[0].numel() * rows.element_size())))
