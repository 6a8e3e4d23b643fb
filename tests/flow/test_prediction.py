from itertools import permutations

import pytest
import torch

from rectiflow.flow.prediction import Prediction, conversion
from rectiflow.flow.schedule import VE, Polynomial, Rectified, VPLinear
from tests.flow.oracles import PATHS

T = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
X, Z = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def quantity(prediction, at):
    """Each quantity from its own definition, for a pair (x, z)."""
    return {
        Prediction.VELOCITY: at.alpha_dot * X + at.beta_dot * Z,
        Prediction.NOISE: Z,
        Prediction.DATA: X,
        Prediction.SCORE: -Z / at.beta,
    }[prediction]


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize(("have", "want"), list(permutations(Prediction, 2)))
def test_conversions(name, have, want):
    at = PATHS[name].at(T)
    x_t = at.alpha * X + at.beta * Z
    there = conversion(have, want, at)
    converted = there.from_x_t * x_t + there.from_value * quantity(have, at)
    size = 1e-10 * max(1.0, float(quantity(want, at).abs().max()), float(quantity(have, at).abs().max()))
    assert torch.allclose(converted, quantity(want, at), rtol=0, atol=size)
    back = conversion(want, have, at)
    again = back.from_x_t * x_t + back.from_value * converted
    assert (again - quantity(have, at)).abs().max() <= size


def test_rectified_formulas():
    at = Rectified().at(T)
    x_t = at.alpha * X + at.beta * Z
    v = Z - X
    assert torch.allclose(x_t - T * v, X)  # x̂ = x_t − t·v
    to_score = conversion(Prediction.VELOCITY, Prediction.SCORE, at)
    assert torch.allclose(to_score.from_x_t * x_t + to_score.from_value * v, -(x_t + (1 - T) * v) / T)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_velocity_is_finite_at_both_ends(name):
    ends = PATHS[name].at(torch.tensor([PATHS[name].t_min, PATHS[name].t_max]))
    for want in (Prediction.NOISE, Prediction.DATA):
        there = conversion(Prediction.VELOCITY, want, ends)
        assert torch.isfinite(torch.stack(there)).all()


def test_time_ranges_keep_away_from_the_end_that_determines_nothing():
    ranges = {p: p.t_range(Rectified()) for p in Prediction}
    assert ranges[Prediction.VELOCITY] == (0, 1)
    assert ranges[Prediction.NOISE] == (0, 0.999)
    assert ranges[Prediction.DATA] == (0.001, 1)
    assert ranges[Prediction.SCORE] == (0.001, 0.999)
    assert Prediction.DATA.loss_t_range(Rectified()) == (0.05, 1)


def test_time_ranges_of_other_paths():
    """A path that never is pure noise or pure data needs no margin there; on others it is one of β, not of t."""
    assert [Prediction.SCORE.t_range(VE()), Prediction.DATA.loss_t_range(VE())] == [(0, 1), (0, 1)]
    assert Prediction.SCORE.t_range(Polynomial(2)) == pytest.approx((0.001**0.5, 0.999**0.5))
    low, high = Prediction.SCORE.t_range(VPLinear())
    assert float(VPLinear().at(torch.tensor(low)).beta) == pytest.approx(1e-3, rel=2e-3)
    assert high == 1
