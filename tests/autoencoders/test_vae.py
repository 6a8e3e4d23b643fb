"""The autoencoder as a whole: where it begins, its posterior, and moves."""

import pytest
import torch

from rectiflow.autoencoders.config import AutoencoderConfig, overlay
from rectiflow.autoencoders.equivariance import Move
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError
from rectiflow.evaluation.linear_code import linear_code

SMALL = {"channels": 3, "width": 8, "multipliers": (1, 2, 2), "groups": 4, "latent_channels": 5}


def vae(**settings):
    torch.manual_seed(0)
    return VAE(AutoencoderConfig(**{**SMALL, **settings}))


def pictures(count=4, side=16):
    """Smooth ones, of which a few components say most."""
    noise = torch.randn(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(noise, (side, side), mode="bilinear").clamp(-2, 2) / 2


@pytest.mark.parametrize(("preset", "factor", "latent"), [("f4", 4, 4), ("f8", 8, 16), ("f16", 16, 32)])
def test_presets(preset, factor, latent):
    config = AutoencoderConfig(**overlay({"channels": 1, "width": 8}, {"preset": preset}))
    x = torch.zeros(1, 1, 32, 32)
    assert config.factor == factor
    assert VAE(config).encode(x).mean.shape == (1, latent, 32 // factor, 32 // factor)
    with pytest.raises(InputError, match="unknown preset 'f9'"):
        overlay({}, {"preset": "f9"})


def test_a_linear_code_is_where_it_begins():
    """Encoding gives the principal components at unit deviation, decoding the best linear reconstruction."""
    x, network = pictures(64), vae(linear=True)
    code = linear_code(x, 4, 5)
    deviations = code.eigenvalues[:5].sqrt()
    network.code.begin_from(code.mean.float(), code.components.float(), deviations.float())
    with torch.no_grad():
        found, wanted = network.encode(x).mean, code.encode(x) / deviations.float()[:, None, None]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.ones(5), atol=1e-3, rtol=0)
        offset = (code.mean.reshape(3, 16) - code.mean.reshape(3, 16).mean(1, keepdim=True)).abs().max()
        assert (network.decode(found) - code.reconstruct(x)).abs().max() < offset + 1e-4


def test_the_convolutions_do_learn_beside_it():
    network, x = vae(linear=True), pictures()
    made, _ = network(x, torch.zeros(4, 5, 4, 4))
    (made - x).square().mean().backward()
    assert float(network.decoder.conv_out.weight.grad.abs().max()) > 0
    assert float(network.encoder.conv_out.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("linear", [False, True])
def test_the_posterior_begins_narrow(linear):
    posterior = vae(linear=linear).encode(pictures())
    assert float(posterior.log_variance.mean()) == pytest.approx(-8, abs=1)


def test_divergence_is_the_integral():
    """∫ q log(q/p) by quadrature, for a mean and a deviation."""
    mean, deviation = 0.7, 0.3
    at = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    q, p = (torch.distributions.Normal(m, s) for m, s in ((mean, deviation), (0.0, 1.0)))
    integral = torch.trapezoid(q.log_prob(at).exp() * (q.log_prob(at) - p.log_prob(at)), at)
    posterior = Posterior(torch.full((1, 1, 1, 1), mean), torch.full((1, 1, 1, 1), deviation).square().log())
    assert float(posterior.divergence()) == pytest.approx(float(integral), rel=1e-5)
    assert float(Posterior(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).divergence()) == 0


def test_the_latents_of_a_step_are_a_draw():
    network, x = vae(), pictures()
    draw = torch.randn(4, 5, 4, 4)
    made, moments = network(x, draw)
    posterior = Posterior.of(moments)
    latents = posterior.mean + (posterior.log_variance / 2).exp() * draw
    torch.testing.assert_close(made, network.decode(latents))
    turned, _ = network(x, draw, lambda latents: latents.flip(-1))
    torch.testing.assert_close(turned, network.decode(latents.flip(-1)))


def test_a_move_takes_latents_and_pictures_alike():
    """Pictures that are constant in each f×f patch are moved as their patches are."""
    patches = torch.randn(2, 3, 8, 8)
    x = patches.repeat_interleave(4, -1).repeat_interleave(4, -2)
    move = Move(8, 8, 1)
    torch.testing.assert_close(move(x, 4), move(patches).repeat_interleave(4, -1).repeat_interleave(4, -2))
    small = Move(4, 6, 3)
    assert small(patches).shape[-2:] == (6, 4)
    assert small(x, 4).shape[-2:] == (24, 16)
    torch.testing.assert_close(small(x, 4).mean(), x.mean(), atol=0.05, rtol=0)


def test_drawn_moves_stay_in_their_bounds():
    draws = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    moves = [Move.drawn(draw, 8, 12, least=3) for draw in draws]
    assert {move.turns for move in moves} == {0, 1, 2, 3}
    assert min(move.height for move in moves) == 3
    assert max(move.width for move in moves) <= 12
    scales = torch.tensor([move.width / 12 for move in moves])
    assert float(scales.mean()) == pytest.approx((0.25 + 1) / 2, abs=0.03)


def test_open_channels():
    with pytest.raises(InputError, match=r"network\.channels is left to the data"):
        VAE(AutoencoderConfig())
    with pytest.raises(InputError, match="5 groups do not divide the 8 channels"):
        AutoencoderConfig.parse({"width": 8, "groups": 5}, "--set")
