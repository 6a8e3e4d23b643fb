"""Pairs of noise and data: a permutation, within labels, of least cost; and what it makes invalid is refused."""

import itertools

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digits
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.coupling import Independent, OptimalTransport
from rectiflow.flow.flow import Flow
from rectiflow.flow.source import Uniform, source
from rectiflow.recipes.registry import resolve
from rectiflow.sampling.likelihood import LikelihoodConfig, log_likelihood
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver
from rectiflow.training.stages import FlowStage
from tests.conftest import SMALL


def draws(count, seed):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def cost(x, z):
    return float(((x - z) ** 2).sum())


def test_it_is_the_permutation_of_least_cost():
    x, z = draws(6, 0), draws(6, 1)
    best = min(cost(x, z[list(order)]) for order in itertools.permutations(range(6)))
    paired = OptimalTransport().pair(x, z, None)
    assert cost(x, paired) == pytest.approx(best, rel=1e-5)
    assert cost(x, paired) < cost(x, z)
    assert torch.equal(Independent().pair(x, z, None), z)


def test_only_samples_of_one_label_change_places():
    """So the noise of each label is what it was: no more, no less."""
    x, z, labels = draws(60, 0), draws(60, 1), torch.arange(60) % 4
    paired = OptimalTransport().pair(x, z, labels)
    assert not torch.equal(paired, z)
    for label in range(4):
        mine = labels == label
        assert torch.equal(paired[mine].sort(0).values, z[mine].sort(0).values)
        rows = {tuple(row) for row in z[mine].tolist()}
        assert {tuple(row) for row in paired[mine].tolist()} == rows
    assert cost(x, paired) >= cost(x, OptimalTransport().pair(x, z, None))


def test_a_batch_in_parts_is_paired_as_a_whole():
    config = resolve("digits", settings=[*SMALL, "flow.coupling=optimal-transport", "batch=24"])
    stage = FlowStage(config, digits(), torch.device("cpu"))
    torch.nn.init.normal_(stage.flow.network.patch_out.weight)
    whole = stage.loss(1)
    parts = sum(stage.loss(1, part) for part in (slice(0, 7), slice(7, 24)))
    assert torch.allclose(whole, parts, rtol=1e-5)
    plain = FlowStage(config.model_copy(update={"flow": FlowConfig()}), digits(), torch.device("cpu"))
    plain.flow.load_state_dict(stage.flow.state_dict())
    assert not torch.allclose(whole, plain.loss(1), rtol=1e-3)


def test_each_part_of_a_paired_batch_draws_its_own_dropout():
    """As without pairing: the generator is at another state when the network is called for another part."""
    config = resolve("digits", settings=[*SMALL, "flow.coupling=optimal-transport", "batch=8", "accumulate=2"])
    stage, states = FlowStage(config, digits(), torch.device("cpu")), []
    stage.flow.network.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    for part in (slice(0, 4), slice(4, 8), slice(4, 8)):
        stage.loss(0, part)
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])


class Linear(torch.nn.Module):
    """The exact velocity of independent N(0, ¼) data from N(0, 1)."""

    def forward(self, x, t, condition=None):
        t = t.reshape(-1, 1).to(x)
        return (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) * x


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"coupling": "optimal-transport"}, "optimal transport"),
        ({"source": "uniform"}, "uniform"),
        ({"source": "mixture"}, "mixture"),
    ],
)
def test_the_score_and_all_that_needs_it_are_refused_with_the_reason(settings, reason):
    flow = Flow.build(Linear(), FlowConfig(**settings))
    x = draws(4, 0).double()
    estimate = flow(x, torch.tensor(0.5))
    assert bool(torch.isfinite(estimate.data).all())  # a posterior mean all the same
    with pytest.raises(InputError, match=f"no score: .*{reason}"):
        _ = estimate.score
    for name in ("sde", "ddpm", "sde-dpm++2m", "edm", "pc"):
        with pytest.raises(InputError, match=reason):
            sample(flow, x, solver(name), 4)
    assert bool(torch.isfinite(sample(flow, x, solver("heun"), 4)).all())
    assert log_likelihood(flow, 0.1 * x, config=LikelihoodConfig(10)).nats.shape == (4,)


def test_the_uniform_source():
    z = Uniform().sample(Key(0, "z"), torch.arange(20_000), (2,))
    assert float(z.mean()) == pytest.approx(0, abs=0.02)
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    density = Uniform().log_density(torch.tensor([[0.0, 1.7], [0.0, 1.8]]))
    assert density.tolist() == pytest.approx([-2 * torch.tensor(12.0).sqrt().log().item(), -torch.inf])
    assert source(FlowConfig()).is_gaussian
    assert not source(FlowConfig(coupling="optimal-transport")).is_gaussian


def test_likelihood_of_a_uniform_source_is_its_own():
    """A flow that does not move at all: the density of the data is that of the source."""
    still = type("Still", (torch.nn.Module,), {"forward": lambda self, x, t, condition=None: 0 * x})()
    flow = Flow.build(still, FlowConfig(source="uniform"))
    found = log_likelihood(flow, torch.tensor([[0.3, -0.2]], dtype=torch.float64), config=LikelihoodConfig(2)).nats
    assert float(found) == pytest.approx(-torch.log(torch.tensor(12.0)).item())
