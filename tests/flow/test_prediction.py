from itertools import permutations

import pytest
import torch

from rectiflow.flow.prediction import Prediction, conversion
from rectiflow.flow.schedule import SCHEDULES, Rectified, schedule

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


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("have", "want"), list(permutations(Prediction, 2)))
def test_conversions(name, have, want):
    at = schedule(name).at(T)
    x_t = at.alpha * X + at.beta * Z
    there = conversion(have, want, at)
    converted = there.from_x_t * x_t + there.from_value * quantity(have, at)
    assert torch.allclose(converted, quantity(want, at), rtol=0, atol=1e-10)
    back = conversion(want, have, at)
    again = back.from_x_t * x_t + back.from_value * converted
    assert (again - quantity(have, at)).abs().max() <= 1e-10


def test_rectified_formulas():
    at = Rectified().at(T)
    x_t = at.alpha * X + at.beta * Z
    v = Z - X
    assert torch.allclose(x_t - T * v, X)  # x̂ = x_t − t·v
    to_score = conversion(Prediction.VELOCITY, Prediction.SCORE, at)
    assert torch.allclose(to_score.from_x_t * x_t + to_score.from_value * v, -(x_t + (1 - T) * v) / T)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_velocity_is_finite_at_both_ends(name):
    ends = schedule(name).at(torch.tensor([0.0, 1.0]))
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
