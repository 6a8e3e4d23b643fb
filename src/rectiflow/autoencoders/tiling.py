"""A function of pictures applied piece by piece: a few pictures at a time, and a picture as overlapping tiles.

Sides are counted in cells, of which a function keeps the number: a cell is f×f pixels or one latent. Along one axis
tile i begins at s_i and counts with w_i(x), Σ_i w_i(x) = 1: where two tiles overlap the one fades in as the other fades
out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where tiles of one length lie along an axis, in cells.

    Args:
        starts: s_i, ascending from 0; the last tile ends where the axis does.
        length: of each tile.
    """

    starts: tuple[int, ...]
    length: int

    @classmethod
    def over(cls, cells: int, most: int) -> "Places":
        """The fewest tiles of at most `most` ≥ 1 cells over an axis, as short as they may be.

        Neighbours share at least a quarter of `most`, and no cell belongs to more than two tiles where `most` ≥ 4.
        """
        if cells <= most:
            return cls((0,), cells)
        overlap = most // 4
        count = -(-(cells - overlap) // (most - overlap))
        length = -(-(cells + (count - 1) * overlap) // count)
        return cls(tuple(i * (cells - length) // (count - 1) for i in range(count)), length)

    def scaled(self, cell: int) -> "Places":
        """The same places where a cell has the side `cell`."""
        return Places(tuple(start * cell for start in self.starts), self.length * cell)

    def slices(self) -> list[slice]:
        """What each tile covers."""
        return [slice(start, start + self.length) for start in self.starts]


def blend_weights(places: Places) -> list[Tensor]:
    """w_i, each of `length`: 1 where a tile is alone, linear between 0 and 1 where it overlaps a neighbour."""
    weights = [torch.ones(places.length) for _ in places.starts]
    for i, (before, after) in enumerate(pairwise(places.starts)):
        overlap = before + places.length - after
        ramp = (torch.arange(overlap) + 0.5) / max(overlap, 1)
        weights[i][places.length - overlap :] = 1 - ramp
        weights[i + 1][:overlap] = ramp
    return weights


def sliced(function: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
    """function(x) for x B×…, at most `count` ≥ 1 rows at a time; they must not depend on each other."""
    return function(x) if len(x) <= count else torch.cat([function(part) for part in x.split(count)])


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, cells: tuple[int, int]) -> Tensor:
    """function(x) from overlapping tiles of x, blended linearly; exact where the function looks only at its own cell.

    Besides the result no more is held than one tile takes.

    Args:
        function: of B×C×an×am to B×C′×bn×bm, for any n and m up to `tile`.
        x: B×C×aH×aW; with H and W up to `tile` it is given to the function whole.
        tile: the longest side of a tile, in cells.
        cells: a and b, the sides of a cell before and after.
    """
    before, after = cells
    axes: Sequence[Places] = [Places.over(side // before, tile) for side in x.shape[-2:]]
    if all(len(places.starts) == 1 for places in axes):
        return function(x)
    sources = [places.scaled(before).slices() for places in axes]
    targets = [places.scaled(after).slices() for places in axes]
    fades = [blend_weights(places.scaled(after)) for places in axes]
    out: Tensor | None = None
    for row, down in enumerate(fades[0]):
        for column, across in enumerate(fades[1]):
            value = function(x[..., sources[0][row], sources[1][column]])
            if out is None:
                out = value.new_zeros(*value.shape[:-2], *(side // before * after for side in x.shape[-2:]))
            weight = (down[:, None] * across).to(value)
            out[..., targets[0][row], targets[1][column]] += weight * value
    assert out is not None
    return out
