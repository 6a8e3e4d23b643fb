"""The bound of a chain in which everything is Gaussian: with the exact posterior it is −log p itself."""

import math
from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.sampling.bound import BoundConfig
from rectiflow.sampling.chain import chain_bound

LATENT, PRIOR, GAIN, NOISE, COUNT = 4, 0.8, 1.5, 0.3, 30_000
# x = GAIN·Q l + NOISE·ε with orthonormal columns Q: the posterior is N(κQᵀx, s²I).
Q = torch.linalg.qr(torch.randn(6, LATENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
PRECISION = 1 / PRIOR**2 + GAIN**2 / NOISE**2
FLOW = GaussianFlow(torch.zeros(LATENT), PRIOR)


def pictures():
    draws = torch.Generator().manual_seed(1)
    latents = PRIOR * torch.randn(COUNT, LATENT, generator=draws, dtype=torch.float64)
    return GAIN * latents @ Q.T + NOISE * torch.randn(COUNT, 6, generator=draws, dtype=torch.float64)


def decoder(x):
    return lambda latents: -torch.distributions.Normal(GAIN * latents @ Q.T, NOISE).log_prob(x).sum(1)


def exact(x):
    covariance = (GAIN * PRIOR) ** 2 * Q @ Q.T + NOISE**2 * torch.eye(6, dtype=torch.float64)
    return -torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance).log_prob(x)


def bound(widen=1.0):
    x = pictures()
    mean = GAIN / NOISE**2 / PRECISION * x @ Q
    std = torch.full_like(mean, widen / math.sqrt(PRECISION))
    found = chain_bound(FLOW, (mean, std), decoder(x), 6, config=BoundConfig(draws=64))
    return found, exact(x)


def test_with_the_exact_posterior_the_bound_is_the_density():
    found, expected = bound()
    difference = found.nats - expected
    assert float(difference.std()) / COUNT**0.5 < 0.01
    assert float(difference.mean()) == pytest.approx(0, abs=0.03)
    assert torch.allclose(found.bits_per_dim, found.nats / (6 * math.log(2)))


def test_with_another_posterior_it_is_above_by_their_divergence():
    """KL(N(m, w²s²) ‖ N(m, s²)) = d·(w² − 1 − log w²)/2."""
    found, expected = bound(widen=1.5)
    divergence = LATENT * (1.5**2 - 1 - math.log(1.5**2)) / 2
    assert float((found.nats - expected).mean()) == pytest.approx(divergence, abs=0.05)


def test_refusals():
    mean = torch.zeros(2, LATENT)
    with pytest.raises(InputError, match="above 0"):
        chain_bound(FLOW, (mean, mean), decoder(torch.zeros(2, 6)), 6)
    with pytest.raises(InputError, match="levels=0"):
        chain_bound(FLOW, (mean, mean + 1), decoder(torch.zeros(2, 6)), 6, config=replace(BoundConfig(), levels=17))
