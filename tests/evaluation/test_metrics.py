"""Distances against closed forms of Gaussians, against torchmetrics, and faults they must see."""

import math

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from rectiflow.base.errors import InputError
from rectiflow.evaluation.metrics import (
    bootstrap,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
    manifold,
    told_apart,
)


def normal(count: int, dimensions: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(count, dimensions, generator=draws, dtype=torch.float64)


def test_the_frechet_distance_of_gaussians_is_their_closed_form():
    """Commuting covariances: Σ (√a − √b)²; and a turned one, whose product has no symmetric form."""
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 9.0])
    found = gaussian_frechet(torch.zeros(3), torch.diag(a), torch.tensor([1.0, 0.0, 2.0]), torch.diag(b))
    assert found == pytest.approx(5 + float(((a.sqrt() - b.sqrt()) ** 2).sum()))
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=torch.float64)
    first, second = (
        torch.diag(torch.tensor([1.0, 9.0]).double()),
        turn @ torch.diag(torch.tensor([4.0, 0.25]).double()) @ turn.T,
    )
    # In two dimensions tr (AB)^½ = √(tr AB + 2√det AB).
    product = first @ second
    cross = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.det(product))))
    expected = float(first.trace() + second.trace()) - 2 * cross
    assert gaussian_frechet(torch.zeros(2), first, torch.zeros(2), second) == pytest.approx(expected)


def test_of_samples_it_tends_to_the_closed_form_with_a_bias_of_one_over_n():
    assert frechet_distance(normal(50_000, 4, 0), normal(50_000, 4, 1, 0.5, 2.0)) == pytest.approx(5.0, rel=0.02)
    assert frechet_distance(normal(500, 4, 0), normal(500, 4, 0)) == pytest.approx(0.0, abs=1e-9)
    biases = [
        sum(frechet_distance(normal(n, 8, 2 * i), normal(n, 8, 2 * i + 1)) for i in range(10)) / 10 for n in (200, 800)
    ]
    assert biases[0] / biases[1] == pytest.approx(4, rel=0.2)


def test_the_kernel_distance_is_unbiased_and_sees_a_shift():
    """Its mean over draws of one law is 0 within three errors; the biased one would be far above."""
    found = torch.tensor([kernel_distance(normal(100, 8, 2 * i), normal(100, 8, 2 * i + 1)) for i in range(100)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 10
    assert kernel_distance(normal(200, 8, 0), normal(200, 8, 1, 1.0)) > 10 * float(found.std())


def test_equal_laws_cover_each_other_and_a_collapsed_one_does_not():
    real, same = normal(800, 4, 0), normal(800, 4, 1)
    good = manifold(same, real)
    assert good.precision > 0.9
    assert good.recall > 0.9
    assert good.density == pytest.approx(1.0, abs=0.1)
    assert good.coverage > 0.9
    collapsed = manifold(real[:1] + normal(800, 4, 2, std=0.01), real)
    assert collapsed.precision > 0.9
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.05
    scattered = manifold(normal(800, 4, 2, std=3.0), real)
    assert scattered.precision < 0.4
    assert scattered.recall > 0.9


def test_a_classifier_tells_a_shift_and_not_a_second_draw():
    same = told_apart(normal(200, 3, 0), normal(200, 3, 1))
    assert same.low < 0.56
    assert told_apart(normal(200, 3, 0), normal(200, 3, 1, 2.0)).value > 0.9
    # Equal moments, other shapes: a Fréchet distance sees nothing.
    signs = torch.where(normal(400, 3, 2) > 0, 1.0, -1.0)
    assert frechet_distance(signs.double(), normal(400, 3, 3)) < 0.1
    assert told_apart(signs.double(), normal(400, 3, 3)).value > 0.95


def test_the_interval_holds_the_figure_and_narrows_with_samples():
    wide, narrow = (bootstrap(frechet_distance, normal(n, 3, 0), normal(2000, 3, 1, 0.5)) for n in (100, 1600))
    for found in (wide, narrow):
        assert found.low < found.value < found.high
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_features_that_do_not_fit_are_one_line():
    with pytest.raises(InputError, match=r"one width.*\(10, 3\) and \(10, 4\)"):
        frechet_distance(normal(10, 3, 0), normal(10, 4, 0))
    with pytest.raises(InputError, match="at least 2 samples"):
        kernel_distance(normal(1, 3, 0), normal(10, 3, 0))
    with pytest.raises(InputError, match="more than 5 samples"):
        manifold(normal(5, 3, 0), normal(10, 3, 0))
    with pytest.raises(InputError, match="at least 10 samples"):
        told_apart(normal(9, 3, 0), normal(10, 3, 0))


def test_torchmetrics_agrees():
    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x.flatten(1)

    a, b = normal(300, 6, 0).float(), normal(300, 6, 1, 0.3, 1.5).float()
    theirs = FrechetInceptionDistance(feature=Same(), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(a.reshape(300, 6, 1, 1), real=True)
    theirs.update(b.reshape(300, 6, 1, 1), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-4)
