"""Langevin steps against the closed form of their stationary variance; Tweedie's formula against autograd."""

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.schedule import Rectified, Trig
from rectiflow.sampling.langevin import langevin
from tests.flow.oracles import ring


def test_the_stationary_variance_is_that_of_the_unadjusted_chain():
    """For N(0, ς²) it is ς²/(1 − h/(2ς²)): not ς² itself, which a chain without the noise's √2 would miss."""
    t, std, size = 0.3, 0.5, 0.05
    variance = (0.7 * std) ** 2 + t**2
    flow = GaussianFlow(torch.zeros(50), std)
    start = variance**0.5 * torch.randn(400, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = langevin(flow, start, t, 100, size, Key(0, "chain"))
    assert float(moved.var()) == pytest.approx(variance / (1 - size / (2 * variance)), rel=0.03)


def test_the_chain_stays_in_a_mixture():
    """Samples of p_t remain samples of p_t: the mean log-density does not move."""
    flow, t = ring(), torch.tensor(0.5, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    which = torch.randint(8, (4000,), generator=draws)
    x = flow.means[which] + 0.2 * torch.randn(4000, 2, generator=draws, dtype=torch.float64)
    x_t = 0.5 * x + 0.5 * torch.randn(4000, 2, generator=draws, dtype=torch.float64)
    moved = langevin(flow, x_t, 0.5, 50, 0.01, Key(0, "chain"))
    assert not torch.allclose(moved, x_t, atol=0.1)
    assert float(flow.log_density(moved, t).mean()) == pytest.approx(float(flow.log_density(x_t, t).mean()), abs=0.06)


@pytest.mark.parametrize("path", [Rectified(), Trig()])
def test_the_score_is_the_gradient_of_the_density_and_gives_the_data_by_tweedie(path):
    flow, t = ring(path), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_density(x, t).sum(), x)
    estimate = flow(x.detach(), t)
    assert torch.allclose(estimate.score, gradient, atol=1e-9)
    at = path.at(t)
    assert torch.allclose(estimate.data, (x.detach() + at.beta**2 * gradient) / at.alpha, atol=1e-9)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="step size > 0"):
        langevin(ring(), torch.zeros(1, 2), 0.5, 3, 0.0, Key(0, "chain"))
    with pytest.raises(InputError, match="infinite at t=0"):
        langevin(ring(), torch.zeros(1, 2), 0.0, 3, 0.1, Key(0, "chain"))
