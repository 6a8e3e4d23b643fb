import math

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.flow.schedule import SCHEDULES, VE, Polynomial, Rectified, Trig, VPLinear, schedule
from tests.flow.oracles import PATHS, noise, ring

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.fixture(params=sorted(PATHS))
def path(request):
    return PATHS[request.param]


@pytest.mark.parametrize("path", [Rectified(), Trig()])
def test_ends(path):
    start, end = path.at(torch.tensor(0.0)), path.at(torch.tensor(1.0))
    assert (float(start.alpha), float(start.beta)) == (1.0, 0.0)
    assert (float(end.alpha), float(end.beta)) == (0.0, 1.0)
    assert path.prior_std == 1.0
    assert path.log_snr_range == (-math.inf, math.inf)


def test_ends_that_are_not_pure():
    assert VE().prior_std == pytest.approx(80)
    assert VE().log_snr_range == pytest.approx((-2 * math.log(80), -2 * math.log(0.002)))
    low, high = VPLinear().log_snr_range  # e^T − 1 = e^(−λ), T = 10.05 at t = 1
    assert low == pytest.approx(-math.log(math.expm1(10.05)))
    assert high == pytest.approx(-math.log(0.1 * 1e-5 + 9.95e-10), rel=1e-6)
    assert VPLinear().prior_std == pytest.approx(1, abs=3e-5)
    assert (Polynomial(3).t_min, Polynomial(1).t_min) == (1e-5, 0)
    assert float(Polynomial(0.5).at(torch.tensor(Polynomial(0.5).t_min)).beta) == pytest.approx(1e-3)


def test_derivatives_against_finite_differences(path):
    h = 1e-6
    at, above, below = path.at(T), path.at(T + h), path.at(T - h)
    assert torch.allclose((above.alpha - below.alpha) / (2 * h), at.alpha_dot, rtol=1e-7, atol=1e-8)
    assert torch.allclose((above.beta - below.beta) / (2 * h), at.beta_dot, rtol=1e-7, atol=1e-8)
    slope = (path.log_snr(T + h) - path.log_snr(T - h)) / (2 * h)
    assert torch.allclose(slope, path.log_snr_dot(T), rtol=1e-6)


def test_everything_is_finite_on_the_whole_range(path):
    at = path.at(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
    assert torch.isfinite(torch.stack(at)).all()
    assert (at.wronskian > 0).all()


def test_inverse_of_the_log_snr(path):
    assert torch.allclose(path.time_of(path.log_snr(T)), T, atol=1e-12)
    ends = torch.tensor([-math.inf, -1e6, 1e6, math.inf])
    expected = [path.t_max, path.t_max, path.t_min, path.t_min]
    assert path.time_of(ends).tolist() == pytest.approx(expected, abs=1e-12)


def test_wronskian(path):
    expected = {
        Rectified: lambda t: torch.ones_like(t),
        Trig: lambda t: torch.full_like(t, math.pi / 2),
        Polynomial: lambda t: path.exponent * t ** (path.exponent - 1),
        VPLinear: lambda t: (0.1 + 19.9 * t) / 2 * path.at(t).alpha / path.at(t).beta,
        VE: lambda t: math.log(80 / 0.002) * path.at(t).beta,
    }[type(path)]
    assert torch.allclose(path.at(T).wronskian, expected(T))


def test_closed_forms():
    assert torch.allclose(Rectified().log_snr(T), -2 * torch.logit(T))
    for path in (Trig(), VPLinear()):
        assert torch.allclose(path.at(T).alpha ** 2 + path.at(T).beta ** 2, torch.ones_like(T))


def test_noise_near_clean_data_keeps_its_digits():
    """β² = 1 − e^(−T) for T = 1e-6: the difference itself would be right to 1e-10 only."""
    t = torch.tensor(VPLinear.t_min, dtype=torch.float64)
    total = 0.1e-5 + 9.95e-10
    assert float(VPLinear().at(t).beta ** 2) == pytest.approx(total - total**2 / 2, rel=1e-12)
    assert float(VPLinear().time_of(VPLinear().log_snr(t))) == pytest.approx(1e-5, rel=1e-9)


def test_first_power_is_the_rectified_path_bit_for_bit():
    t = torch.cat([T, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    for mine, other in zip(Polynomial(1.0).at(t), Rectified().at(t), strict=True):
        assert torch.equal(mine, other)
    assert (Polynomial(1.0).inside(0.05), Polynomial(1.0).t_min) == (Rectified().inside(0.05), 0)


def test_ve_is_the_rectified_path():
    """t = σ/(1+σ), x_t = x_VE/(1+σ): the same posterior means, so the same ODE."""
    ve, x = VE(), 3 * noise(99, 2)
    sigma = ve.at(T).beta
    means, std = ring().means, 0.2
    exploding = GaussianMixtureFlow(means, std, schedule=ve).estimate(x, T)
    rectified = GaussianMixtureFlow(means, std).estimate(x / (1 + sigma)[:, None], sigma / (1 + sigma))
    assert torch.allclose(exploding.data, rectified.data, atol=1e-10)
    assert torch.allclose(exploding.noise, rectified.noise, atol=1e-10)
    # x_t = x_VE/(1+σ) by the chain rule: dx_t/dt · dt/dσ = v_VE/(σ′(1+σ)) − x_VE/(1+σ)².
    sigma_dot, scale = ve.at(T).beta_dot[:, None], (1 + sigma)[:, None]
    chain = exploding.velocity / (sigma_dot * scale) - x / scale**2
    assert torch.allclose(chain, rectified.velocity / scale**2, atol=1e-10)


def test_float32_times_are_computed_in_float64(path):
    assert path.at(torch.tensor(0.3, dtype=torch.float32)).alpha.dtype == torch.float64


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_by_configuration(name):
    path = schedule(FlowConfig(schedule=name, exponent=2.0, sigma_min=0.01, sigma_max=50.0))
    if isinstance(path, Polynomial):
        assert path.exponent == 2
    if isinstance(path, VE):
        assert [float(path.at(torch.tensor(t)).beta) for t in (0.0, 1.0)] == pytest.approx([0.01, 50])
    assert path.scaled == (name in ("ve", "vp-linear"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "rectifed"}, "Did you mean 'rectified'"),
        ({"schedule": "vp"}, "'vp-linear'"),
        ({"exponent": 0.0}, "exponent"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min 2.0 must be below sigma_max 1.0"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(InputError, match=words):
        FlowConfig.parse(settings, "here")


def test_impossible_paths():
    with pytest.raises(InputError, match="exponent"):
        Polynomial(-1.0)
    with pytest.raises(InputError, match="sigma_min"):
        VE(1.0, 0.5)
