"""Distances between the samples of two sets, a block of rows at a time: the whole matrix is never held."""

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist
from torch import Tensor

_NUMBERS = 2**22  # of a block: 32 MiB as float64


def row_blocks(count: int, width: int) -> Iterator[slice]:
    """Rows of a matrix of `count` rows, in blocks of at most 2²² numbers of `width` each; one row at least."""
    rows = max(1, _NUMBERS // max(1, width))
    return (slice(start, min(count, start + rows)) for start in range(0, count, rows))


def distance_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the matrix of distances ‖aᵢ − bⱼ‖ of features N×d and M×d, float64, and which rows they are."""
    left, right = a.numpy(), b.numpy()
    for rows in row_blocks(len(left), len(right)):
        yield rows, cdist(left[rows], right)


def to_neighbour(points: Tensor, k: int) -> np.ndarray:
    """Distance of each of N points N×d to its k-th neighbour, 1 ≤ k < N, among the others; float64 N."""
    found = np.empty(len(points))  # a column taken out of a block would hold on to all of it
    for rows, block in distance_blocks(points, points):
        found[rows] = np.partition(block, k, axis=1)[:, k]  # the 0-th is the point itself
    return found
