"""Distances by blocks of rows: the same as of whole matrices, in a bounded memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from rectiflow.evaluation import distances
from rectiflow.evaluation.memory import copies
from rectiflow.evaluation.metrics import kernel_distance, manifold


def normal(count: int, seed: int, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[1, 1000, 2**22], ids=["a row", "some rows", "all rows"])
def block(request, monkeypatch):
    """How many numbers a block has."""
    monkeypatch.setattr(distances, "_NUMBERS", request.param)


def test_blocks_are_the_rows_of_the_matrix(block):
    a, b = normal(37, 0), normal(53, 1)
    found = list(distances.distance_blocks(a, b))
    assert [i for rows, _ in found for i in range(rows.start, rows.stop)] == list(range(37))
    assert np.array_equal(np.concatenate([part for _, part in found]), cdist(a.numpy(), b.numpy()))


@pytest.mark.parametrize("k", [1, 5, 36])
def test_the_kth_neighbour_is_that_of_the_sorted_matrix(block, k):
    points = torch.cat([normal(36, 0), normal(1, 0)])  # one of them twice
    whole = np.sort(cdist(points.numpy(), points.numpy()), axis=1)[:, k]
    assert np.array_equal(distances.to_neighbour(points, k), whole)


def test_coverage_is_that_of_whole_matrices(block):
    made, real, k = normal(61, 0) * 1.2, normal(47, 1), 3
    between = cdist(made.numpy(), real.numpy())
    of_real, of_made = (np.sort(cdist(x.numpy(), x.numpy()), axis=1)[:, k] for x in (real, made))
    inside = between <= of_real
    found = manifold(made, real, k)
    assert found.precision == inside.any(1).mean()
    assert found.recall == (between <= of_made[:, None]).any(0).mean()
    assert found.density == inside.sum(1).mean() / k
    assert found.coverage == inside.any(0).mean()
    assert 0 < found.recall < 1
    assert 0 < found.coverage < 1


def test_the_kernel_distance_is_that_of_whole_matrices(block):
    a, b = normal(61, 0), normal(47, 1) + 0.3

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    same = [(g.sum() - g.trace()) / (len(g) * (len(g) - 1)) for g in (kernel(a, a), kernel(b, b))]
    assert kernel_distance(a, b) == pytest.approx(float(same[0] + same[1] - 2 * kernel(a, b).mean()), rel=1e-12)


def test_copies_are_those_of_whole_matrices(block):
    train, held_out = normal(90, 0), normal(20, 1)
    made = torch.cat([train[[7, 3]] + 1e-3, normal(30, 2)])
    between = torch.from_numpy(cdist(made.numpy(), train.numpy()))
    found = copies(made, train, held_out)
    assert torch.equal(found.nearest, between.min(1).values)
    assert found.threshold == np.quantile(np.sort(cdist(train.numpy(), train.numpy()), axis=1)[:, 1], 0.01)
    assert {tuple(pair) for pair in found.pairs[:2].tolist()} == {(0, 7), (1, 3)}
    assert found.share == (between.min(1).values < found.threshold).double().mean()
    assert found.held_out_share == (cdist(held_out.numpy(), train.numpy()).min(1) < found.threshold).mean()


def test_memory_does_not_grow_with_the_matrix(monkeypatch):
    """2,500 × 2,500 distances are 50 MB; a block has 2 MiB here, and its copy as much."""
    monkeypatch.setattr(distances, "_NUMBERS", 2**18)
    train, few = normal(2500, 0, width=2), normal(50, 1, width=2)
    tracemalloc.start()
    try:
        copies(few, train, few)
        manifold(few, train)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6
