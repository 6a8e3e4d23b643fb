import math

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.schedule import SCHEDULES, schedule

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.fixture(params=sorted(SCHEDULES))
def path(request):
    return schedule(request.param)


def test_ends(path):
    start, end = path.at(torch.tensor(0.0)), path.at(torch.tensor(1.0))
    assert (float(start.alpha), float(start.beta)) == (1.0, 0.0)
    assert (float(end.alpha), float(end.beta)) == (0.0, 1.0)
    assert path.prior_std == 1.0
    assert path.log_snr_range == (-math.inf, math.inf)


def test_derivatives_against_finite_differences(path):
    h = 1e-6
    at, above, below = path.at(T), path.at(T + h), path.at(T - h)
    assert torch.allclose((above.alpha - below.alpha) / (2 * h), at.alpha_dot, atol=1e-8)
    assert torch.allclose((above.beta - below.beta) / (2 * h), at.beta_dot, atol=1e-8)
    slope = (path.log_snr(T + h) - path.log_snr(T - h)) / (2 * h)
    assert torch.allclose(slope, path.log_snr_dot(T), rtol=1e-6)


def test_inverse_of_the_log_snr(path):
    assert torch.allclose(path.time_of(path.log_snr(T)), T, atol=1e-12)
    ends = torch.tensor([-math.inf, -1e6, 1e6, math.inf])
    assert path.time_of(ends).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-12)


def test_wronskian_is_constant(path):
    expected = {"Rectified": 1.0, "Trig": math.pi / 2}[type(path).__name__]
    assert torch.allclose(path.at(T).wronskian, torch.full_like(T, expected))


def test_closed_forms():
    assert torch.allclose(schedule("rectified").log_snr(T), -2 * torch.logit(T))
    assert torch.allclose(schedule("trig").at(T).alpha ** 2 + schedule("trig").at(T).beta ** 2, torch.ones_like(T))


def test_float32_times_are_computed_in_float64(path):
    assert path.at(torch.tensor(0.3, dtype=torch.float32)).alpha.dtype == torch.float64


def test_unknown_schedule():
    with pytest.raises(InputError, match="Did you mean 'rectified'"):
        schedule("rectifed")
