"""Bits per dimension: a model whose answer is known, and one of levels that are independent and uniform."""

import math

import pytest
import torch

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError
from rectiflow.conditioner import Conditioner
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.evaluation import likelihood, memory
from rectiflow.evaluation.likelihood import LikelihoodRequest, dequantised, held_out_likelihood
from rectiflow.evaluation.memory import loss_by_noise
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.config import DiTConfig
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.likelihood import LikelihoodConfig

LEVELS = 17


def levels(count: int, seed: int) -> InMemory:
    """Pictures of 4×4 whose pixels are uniform over the levels: log₂ 17 bits each, whatever the model."""
    draws = torch.randint(LEVELS, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return InMemory(draws.float() * 2 / (LEVELS - 1) - 1, torch.zeros(count, dtype=torch.int64))


class OfGaussian(torch.nn.Module):
    """The exact velocity of data N(0, s²I)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = torch.nn.Parameter(torch.tensor(std))

    def forward(self, x, t, condition=None):
        t = t.reshape(-1, 1, 1, 1)
        spread2 = (1 - t) ** 2 * self.std**2 + t**2
        return (t - (1 - t) * self.std**2) / spread2 * x


def pipeline(std: float) -> Pipeline:
    network = DiTConfig(channels=1, classes=0, patch=4, width=16, depth=1, heads=2)
    return Pipeline(Flow(OfGaussian(std)), FlowConfig(), network, (1, 4, 4))


def test_a_gaussian_model_has_the_bits_of_its_closed_form():
    held_out = levels(60, 1)
    data = ImageSet(levels(200, 0), held_out, (), LEVELS)
    request = LikelihoodRequest(ode=LikelihoodConfig(50), mixture=True)
    found = held_out_likelihood(pipeline(0.62), data, request)
    noisy = dequantised(held_out, torch.arange(60), LEVELS, 0)
    nats = torch.distributions.Normal(0.0, 0.62).log_prob(noisy).flatten(1).sum(1)
    bits = -nats / (16 * math.log(2)) + math.log2(8)
    assert found["ode"]["bits_per_dim"] == pytest.approx(float(bits.mean()), abs=2e-3)
    assert found["ode"]["standard_error"] == pytest.approx(float(bits.std() / 60**0.5), abs=2e-3)
    # No model has fewer bits than the entropy of the levels, log₂ 17; the Gaussian densities are close above.
    for kind in ("ode", "bound", "mixture"):
        assert math.log2(17) - 0.05 < found[kind]["bits_per_dim"] < math.log2(17) + 0.6, kind
    # With exact fields the bound of the same pictures is their density.
    assert found["bound"]["bits_per_dim"] == pytest.approx(found["ode"]["bits_per_dim"], abs=0.05)


def test_a_worse_model_has_more_bits():
    data = ImageSet(levels(50, 0), levels(60, 1), (), LEVELS)
    request = LikelihoodRequest(mixture=False)
    good, bad = (held_out_likelihood(pipeline(std), data, request)["ode"]["bits_per_dim"] for std in (0.62, 0.2))
    assert bad > good + 1


def test_what_cannot_be_measured_is_refused():
    data = ImageSet(levels(50, 0), levels(1, 1), (), LEVELS)
    with pytest.raises(InputError, match="at least 2 held-out pictures"):
        held_out_likelihood(pipeline(0.6), data)
    other = ImageSet(levels(50, 0), levels(5, 1), (), LEVELS)
    model = pipeline(0.6)
    model.shape = (1, 8, 8)
    with pytest.raises(InputError, match="expected pictures of"):
        held_out_likelihood(model, other)


def test_a_decoder_without_a_probability_has_no_likelihood():
    model = pipeline(0.6)
    config = AutoencoderConfig(channels=1, width=8, multipliers=(1, 2), groups=4, latent_channels=2)
    model.autoencoder = LatentSpace(VAE(config))
    with pytest.raises(InputError, match=r"its decoder was trained on differences of pictures, not on a probability"):
        held_out_likelihood(model, ImageSet(levels(50, 0), levels(5, 1), (), LEVELS))


def test_every_tensor_follows_the_model(monkeypatch):
    """Each call that moves a tensor to the model's device is counted, since one left behind fails only on a GPU."""
    moved = []
    original = torch.Tensor.to
    device = torch.device("cpu", 0)  # the CPU by another name
    monkeypatch.setattr(likelihood, "device_of", lambda pipeline: device)
    monkeypatch.setattr(memory, "device_of", lambda pipeline: device)

    def to(self, *arguments, **keywords):
        if device is next(iter(arguments), None):
            moved.append(tuple(self.shape))
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", to)
    model = pipeline(0.6)
    model.conditioner = Conditioner(("only",))
    data = ImageSet(levels(50, 0), levels(5, 1), ("only",), LEVELS)
    request = LikelihoodRequest(ode=LikelihoodConfig(2), mixture=False, bound_draws=2)
    held_out_likelihood(model, data, request)
    assert moved == [(5, 1, 4, 4), (5, 1, 4, 4)]  # pictures of the ODE and of the bound; labels the pipeline moves
    moved.clear()
    loss_by_noise(model, data.train, data.held_out)
    assert moved.count((5, 1, 4, 4)) == 2 + 2 * 9  # pictures of both parts, and the noise of nine levels
