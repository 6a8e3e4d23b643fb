"""log p by the ODE against closed forms: REFERENCE tolerances, any shape, any path, any source."""

import math

import pytest
import torch
from torch import nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import Flow
from rectiflow.flow.schedule import VE, Rectified, Trig, VPLinear
from rectiflow.sampling.likelihood import LikelihoodConfig, log_likelihood
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver
from tests.flow.oracles import ring


def points(count: int = 200) -> torch.Tensor:
    """Draws of problem A's data."""
    flow, draws = ring(), torch.Generator().manual_seed(0)
    which = torch.randint(8, (count,), generator=draws)
    return flow.means[which] + 0.2 * torch.randn(count, 2, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "steps", "least", "greatest"),
    [("midpoint", 50, 0.0, 6e-2), ("rk4", 50, 0.0, 5e-4), ("euler", 100, 0.1, 1.0)],
)
def test_a_mixture_has_its_density(name, steps, least, greatest):
    """RK4 with 50 steps is within 5e-4 nats; Euler, which is why it is not the default, is not."""
    flow, x = ring(), points()
    found = log_likelihood(flow, x, config=LikelihoodConfig(steps, name))
    worst = float((found.nats - flow.log_density(x, torch.tensor(0.0))).abs().max())
    assert least <= worst < greatest
    assert torch.equal(found.error, torch.zeros(len(x), dtype=torch.float64))


def test_a_condition_has_its_own_density():
    flow, x = ring(), points(50)
    condition = Condition(torch.zeros(50, dtype=torch.int64))
    found = log_likelihood(flow, x, condition).nats
    expected = flow.log_density(x, torch.tensor(0.0), condition)
    near = expected > -20  # elsewhere the ODE is stiff
    assert near.sum() > 5
    assert torch.allclose(found[near], expected[near], atol=1e-2)


@pytest.mark.parametrize("path", [Rectified(), Trig(), VPLinear(), VE(0.01, 80.0)])
def test_pictures_of_a_gaussian_have_its_density_on_every_path(path):
    """Any shape, not only B×d: the trace is over all pixels."""
    mean, std = torch.linspace(-0.5, 0.5, 12).reshape(3, 2, 2).double(), 0.5
    flow = GaussianFlow(mean, std, path)
    x = mean + std * torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = log_likelihood(flow, x, config=LikelihoodConfig(100))
    expected = torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)
    # What these two paths leave of the data at t = 1, and of the noise at t = 0, is in the closed form's place.
    tolerance = 0.05 if path.scaled else 2e-2
    assert torch.allclose(found.nats, expected, atol=tolerance)


def test_a_uniform_grid_is_far_off_where_the_velocity_is_steep():
    """Which is why it is not the default there."""
    flow = GaussianFlow(torch.zeros(3), 0.05, VPLinear())
    x = 0.05 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 0.05).log_prob(x).sum(1)
    default, uniform = (
        float((log_likelihood(flow, x, config=config).nats - expected).abs().max())
        for config in (LikelihoodConfig(60), LikelihoodConfig(60, grid="uniform"))
    )
    assert default < 0.1
    assert uniform > 5 * default


def test_the_noise_leads_back_to_the_data():
    flow, x = ring(), points(20)
    noise = log_likelihood(flow, x, config=LikelihoodConfig(200)).noise
    assert torch.allclose(sample(flow, noise, solver("rk4"), 200), x, atol=1e-3)


def test_probes_are_unbiased_and_their_error_is_told():
    """A field with a full Jacobian: the mean of many probes is the trace, within the error that is told."""
    torch.manual_seed(0)
    flow = Flow(Swirl()).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    exact = log_likelihood(flow, x, config=LikelihoodConfig(4)).nats
    estimated = log_likelihood(flow, x, config=LikelihoodConfig(4, probes=100))
    assert float(estimated.error.max()) > 1e-3
    assert bool(((estimated.nats - exact).abs() < 4 * estimated.error).all())


def test_probes_depend_on_the_sample_and_not_on_its_batch():
    torch.manual_seed(0)
    flow, x = Flow(Swirl()).double(), torch.randn(6, 4, dtype=torch.float64)
    config = LikelihoodConfig(5, probes=2)
    whole = log_likelihood(flow, x, config=config).nats
    part = log_likelihood(flow, x[4:], config=config, index=torch.arange(4, 6)).nats
    assert torch.allclose(whole[4:], part, rtol=1e-12)


def test_bits_per_dimension_of_uniform_levels():
    """A density of ½ over [−1, 1] with levels 2/(L−1) apart has log₂(L−1) bits a pixel."""

    found = log_likelihood(GaussianFlow(torch.zeros(3), 1.0), torch.zeros(2, 3, dtype=torch.float64))
    even = type(found)(torch.full((2,), -3 * math.log(2.0), dtype=torch.float64), found.error, found.noise)
    assert torch.allclose(even.bits_per_dim(17), torch.full((2,), 4.0, dtype=torch.float64))


def test_a_one_step_model_and_bad_settings_are_refused():
    flow = Flow(Swirl(), one_step=True)
    with pytest.raises(InputError, match="one step"):
        log_likelihood(flow, torch.zeros(2, 4))
    with pytest.raises(InputError, match="probes must be ≥ 0"):
        log_likelihood(ring(), points(2), config=LikelihoodConfig(probes=-1))
    with pytest.raises(InputError, match="unknown solver of a likelihood 'rk45'"):
        log_likelihood(ring(), points(2), config=LikelihoodConfig(solver="rk45"))


class Swirl(nn.Module):
    """v = tanh(Ax)·(1 + t)."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x, t, condition=None):
        return torch.tanh(self.map(x)) * (1 + t[:, None].to(x))
