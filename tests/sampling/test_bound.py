"""The variational bound with exact fields: it is −log p on every path; with T steps its gap is as published."""

import math

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.schedule import VE, Rectified, Trig
from rectiflow.sampling.bound import BoundConfig, variational_bound
from tests.flow.oracles import ring


@pytest.mark.parametrize("path", [Rectified(), Trig(), VE(math.exp(-8), math.exp(7))], ids=lambda p: type(p).__name__)
def test_with_exact_fields_the_continuous_bound_is_the_density(path):
    """Pointwise, within the error of its draws."""
    flow = ring(path)
    x = torch.tensor([[1.3, 0.1], [0.9, 0.9], [0.0, -1.2]], dtype=torch.float64)
    many = x.repeat_interleave(4000, dim=0)
    nats = variational_bound(flow, many, config=BoundConfig(draws=150)).nats.reshape(3, 4000)
    error = nats.std(1) / 4000**0.5
    expected = -ring().log_density(x, torch.tensor(0.0))
    assert float(error.max()) < 0.01
    assert float((nats.mean(1) - expected).abs().max()) < 0.03


@pytest.mark.parametrize(("std", "gaps"), [(0.5, {50: 1.96, 250: 0.337}), (1.0, {50: 2.20, 250: 0.377})])
def test_the_discrete_bound_has_the_published_gap(std, gaps):
    """Over the entropy of N(0, s²), in nats per dimension, log-SNRs evenly spaced on [−14, 14]."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    flow = GaussianFlow(torch.zeros(64), std)
    x = std * torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps, gap in gaps.items():
        config = BoundConfig(steps=steps, draws=2 * steps, log_snr=(-14.0, 14.0))
        found = float(variational_bound(flow, x, config=config).nats.mean()) / 64
        assert found - entropy == pytest.approx(gap, rel=0.05, abs=0.02)


def test_the_three_terms():
    """At λ_low = −14 the prior is nearly nothing; the reconstruction of a density is the entropy of its noise."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = variational_bound(GaussianFlow(torch.zeros(8), 1.0), x, config=BoundConfig(draws=8))
    assert float(bound.prior.abs().max()) < 1e-4
    expected = 4 * (math.log(2 * math.pi * math.e) - 16)
    assert torch.allclose(bound.reconstruction, torch.full((4,), expected, dtype=torch.float64))


def test_levels_are_read_exactly_at_little_noise_and_guessed_at_much():
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)[None]
    flow = GaussianFlow(torch.zeros(17), 0.6)
    sharp, blurred = (
        variational_bound(flow, x, config=BoundConfig(draws=2, levels=17, log_snr=(-14.0, high)))
        for high in (12.0, 2.0)
    )
    assert float(sharp.reconstruction) < 1e-6
    assert float(blurred.reconstruction) > 17 * 0.5


def test_bits_of_levels_and_of_the_dequantised_density_agree():
    """Levels of a wide Gaussian: −log₂ P(level) is the density times the width of a cell, to second order."""
    std, levels = 0.4, 41
    x = (torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * std).clamp(-1, 1)
    x = ((x + 1) / 2 * (levels - 1)).round() * 2 / (levels - 1) - 1
    # The exact model of levels is not this Gaussian: with less noise than a cell it would see them.
    bound = variational_bound(
        GaussianFlow(torch.zeros(6), std), x, config=BoundConfig(draws=64, levels=levels, log_snr=(-14, 6.5))
    )
    density = -torch.distributions.Normal(0.0, std).log_prob(x).sum(1) / (6 * math.log(2)) + math.log2((levels - 1) / 2)
    assert float(bound.bits_per_dim.mean()) == pytest.approx(float(density.mean()), abs=0.1)


def test_what_cannot_be_is_refused():
    flow, x = ring(), torch.zeros(2, 2)
    with pytest.raises(InputError, match="draws ≥ 2"):
        variational_bound(flow, x, config=BoundConfig(draws=1))
    with pytest.raises(InputError, match=r"expected log-SNRs"):
        variational_bound(flow, x, config=BoundConfig(log_snr=(5.0, 5.0)))
