import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.flow.source import Gaussian, Mixture, Pictures
from rectiflow.sampling.likelihood import log_likelihood


def test_log_density_against_torch():
    z = Gaussian().sample(Key(0, "z"), torch.arange(5), (3, 4))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    assert z.shape == (5, 3, 4)
    assert torch.allclose(Gaussian().log_density(z), expected)


MIXTURE = Mixture(3, 0.4, torch.tensor([[-2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]))


def test_a_mixture_draws_what_its_density_says():
    """The share of draws in a region is the integral of the density over it."""
    z = MIXTURE.sample(Key(0, "noise"), torch.arange(40_000), (2,)).double()
    edges = torch.linspace(-5, 5, 401, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    points = torch.cartesian_prod(middle, middle)
    mass = MIXTURE.log_density(points).exp() * (edges[1] - edges[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    for low, high in (((-5, -5), (-1, 5)), ((-1, -5), (5, 1)), ((0, 2), (1, 4))):
        inside = [((p > torch.tensor(low)) & (p < torch.tensor(high))).all(1) for p in (points, z)]
        assert float(inside[1].double().mean()) == pytest.approx(float(mass[inside[0]].sum()), abs=0.01)


def test_the_default_mixture_has_unit_deviation_and_is_keyed():
    source = Mixture(64, 0.5)
    z = source.sample(Key(0, "noise"), torch.arange(4000), (3, 4, 4))
    assert float(z.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(source.sample(Key(0, "noise"), torch.tensor([7]), (3, 4, 4))[0], z[7])
    assert not torch.equal(source.sample(Key(1, "noise"), torch.tensor([7]), (3, 4, 4))[0], z[7])


@pytest.mark.parametrize("arguments", [(0,), (2, 1.0), (2, 0.5, torch.zeros(3, 2))])
def test_a_mixture_that_cannot_be(arguments):
    with pytest.raises(InputError):
        Mixture(*arguments)


def test_likelihood_from_a_mixture_is_exact():
    """Under v = 0 the data are the source itself."""
    still = type("Still", (torch.nn.Module,), {"forward": lambda self, x, t, condition=None: 0 * x})()
    flow = Flow(still, source=MIXTURE)
    x = MIXTURE.sample(Key(1, "x"), torch.arange(8), (2,)).double()
    assert torch.allclose(log_likelihood(flow, x).nats, MIXTURE.log_density(x))


def test_pictures_are_drawn_whole_and_have_no_density():
    pool = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    source = Pictures(lambda rows: pool[rows], 5)
    z = source.sample(Key(0, "noise"), torch.arange(2000), (1, 2, 2))
    assert torch.equal(z, z[:, :, :1, :1].expand_as(z))
    shares = torch.bincount(z[:, 0, 0, 0].long(), minlength=5) / 2000
    assert torch.allclose(shares, torch.full((5,), 0.2), atol=0.04)
    assert torch.equal(source.at(torch.tensor([6]), (1, 2, 2)), pool[1:2])
    with pytest.raises(InputError, match="density"):
        source.log_density(z)
    with pytest.raises(InputError, match="expected source pictures"):
        source.sample(Key(0, "noise"), torch.arange(2), (1, 4, 4))
    with pytest.raises(InputError, match="--source DIR"):
        Pictures().sample(Key(0, "noise"), torch.arange(2), (1, 2, 2))


def test_a_bridge_needs_a_path_that_ends_at_its_source():
    with pytest.raises(InputError, match="never ends at its source"):
        FlowConfig.parse({"source": "pictures", "schedule": "ve"}, "flow")
