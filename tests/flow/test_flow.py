import pytest
import torch
from torch import nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import Flow
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import VE, Trig, VPLinear
from rectiflow.flow.source import Source
from tests.flow.oracles import PATHS, noise


class Exact(nn.Module):
    """A network that predicts one quantity of an exact Gaussian, and remembers the times it was asked at."""

    def __init__(self, prediction, path):
        super().__init__()
        self.oracle, self.prediction, self.times = GaussianFlow(torch.ones(3), 0.5, path), prediction, []

    def forward(self, x_t, t, condition):
        self.times.append(t)
        return self.oracle.estimate(x_t, t.double()).get(self.prediction)


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"ve", "vp-linear"}))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_prediction_gives_the_same_estimate(name, prediction):
    path = PATHS[name]
    x, t = noise(6, 3), torch.linspace(0.1, 0.9, 6, dtype=torch.float32).double()
    estimate = Flow(Exact(prediction, path), path, prediction)(x, t)
    expected = GaussianFlow(torch.ones(3), 0.5, path).estimate(x, t)
    for want in Prediction:
        assert torch.allclose(estimate.get(want), expected.get(want), atol=1e-6)


@pytest.mark.parametrize("path", [VE(), VPLinear()])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_network_of_a_scaled_path_works_at_unit_size(path, prediction):
    """For data of deviation σ_d, what it is given and what it should give both have root mean square 1."""
    count, sigma_data = 200_000, 0.4
    t = torch.linspace(*prediction.t_range(path), 5, dtype=torch.float64)
    for time in t:
        at, seen = path.at(time), []
        x, z = sigma_data * noise(count, 1), noise(count, 1, seed=1)
        a, b = prediction.row(at)
        network = nn.Identity()
        network.forward = lambda x_t, t, condition, seen=seen: seen.append(x_t) or torch.ones_like(x_t)
        flow = Flow(network, path, prediction, sigma_data=sigma_data)
        value = flow(at.alpha * x + at.beta * z, time).value
        assert float(seen[0].square().mean().sqrt()) == pytest.approx(1, rel=0.01)
        assert float(((a * x + b * z) / value).square().mean().sqrt()) == pytest.approx(1, rel=0.01)


def test_scaled_path_with_an_exact_network():
    """The scale is taken off again: an exact network in scaled units gives the exact estimate."""
    path, sigma_data, x = VE(), 0.4, noise(6, 3)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float32).double()
    oracle, at = GaussianFlow(torch.ones(3), 0.5, path), path.at(t)
    scale_in = (at.alpha**2 * sigma_data**2 + at.beta**2).sqrt()[:, None]
    scale_out = (at.alpha_dot**2 * sigma_data**2 + at.beta_dot**2).sqrt()[:, None]
    network = nn.Identity()
    network.forward = lambda x_t, _, condition: oracle.estimate(x_t * scale_in, t).velocity / scale_out
    estimate = Flow(network, path, sigma_data=sigma_data)(x, t)
    assert torch.allclose(estimate.velocity, oracle.estimate(x, t).velocity, rtol=1e-9)


def test_predicted_value_is_untouched():
    network = Exact(Prediction.NOISE, Trig())
    x, t = noise(4, 3), torch.tensor(0.25)
    assert torch.equal(Flow(network, Trig(), "noise")(x, t).noise, network(x, t.expand(4), None))


def test_times_stay_where_the_prediction_tells_something():
    network = Exact(Prediction.NOISE, None)
    estimate = Flow(network, prediction="noise")(noise(2, 3), torch.tensor(1.0))
    assert network.times[0].tolist() == pytest.approx([0.999, 0.999])
    assert torch.isfinite(estimate.velocity).all()


class Uniform(Source):
    no_score = "the source is another one"

    def sample(self, key, index, shape):
        return 2 * key.uniform(index, shape).float() - 1

    def log_density(self, z):
        return torch.zeros(len(z))


def test_no_score_under_another_source():
    flow = Flow(Exact(Prediction.VELOCITY, None), source=Uniform())
    estimate = flow(flow.source.sample(Key(0, "z"), torch.arange(2), (3,)), torch.tensor(0.5))
    assert torch.isfinite(estimate.data).all()
    with pytest.raises(InputError, match="the source is another one"):
        _ = estimate.score


def test_no_score_on_clean_data():
    with pytest.raises(InputError, match="t=0"):
        _ = GaussianFlow(torch.ones(3), 0.5).estimate(noise(1, 3), torch.tensor(0.0)).score


def test_average_velocity_is_refused_by_a_network_of_one_time():
    with pytest.raises(InputError, match="average velocity"):
        Flow(Exact(Prediction.VELOCITY, None))(noise(1, 3), torch.tensor(0.5), None, s=0.1)


def test_condition_reaches_the_network():
    class Recorder(nn.Module):
        def forward(self, x_t, t, condition):
            return x_t * condition.labels[:, None]

    condition = Condition(torch.tensor([2, 3]))
    assert Flow(Recorder())(torch.ones(2, 1), torch.tensor(0.5), condition).velocity.tolist() == [[2], [3]]
