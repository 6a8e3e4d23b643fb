import pytest
import torch
from torch import nn

from rectiflow.flow.flow import Flow, expand
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.flow.prediction import Prediction, conversion
from rectiflow.flow.schedule import Rectified
from tests.flow.oracles import PATHS, noise, ring


class Constant(nn.Module):
    """Always predicts one number."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x_t, t, condition):
        return self.value.expand_as(x_t)


def test_textbook_formula():
    x, z, t = noise(4, 6), noise(4, 6, seed=1), torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    loss = flow_matching_loss(Flow(Constant(0.5)), x, t, z)
    assert torch.allclose(loss, ((z - x - 0.5) ** 2).mean(1))


def test_the_network_sees_x_t():
    class Recorder(nn.Module):
        def forward(self, x_t, t, condition):
            self.x_t, self.t = x_t, t
            return x_t

    network, x, z = Recorder(), noise(3, 2), noise(3, 2, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    flow_matching_loss(Flow(network), x, t, z)
    assert torch.allclose(network.x_t, (1 - t[:, None]) * x + t[:, None] * z)
    assert torch.allclose(network.t.double(), t)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_prediction_has_the_loss_of_its_velocity(name, prediction):
    """Away from the ends, the loss equals the error of the velocity that the estimate itself gives."""
    path, x, z = PATHS[name], noise(5, 8), noise(5, 8, seed=1)
    t = torch.linspace(0.3, 0.9, 5, dtype=torch.float64)
    flow = Flow(Constant(0.3), path, prediction)
    at = path.at(t)
    x_t = expand(at.alpha, x) * x + expand(at.beta, x) * z
    target = expand(at.alpha_dot, x) * x + expand(at.beta_dot, x) * z
    expected = ((flow(x_t, t).velocity - target) ** 2).mean(1)
    assert torch.allclose(flow_matching_loss(flow, x, t, z), expected, rtol=1e-9)


def test_data_prediction_is_bounded_near_clean_data():
    x, z = noise(1, 8), noise(1, 8, seed=1)
    flow = Flow(Constant(0.3), prediction="data")
    near, at_bound = (flow_matching_loss(flow, x, torch.tensor([t]), z) for t in (0.002, 0.05))
    assert torch.allclose(near, at_bound)
    at_bound = conversion(Prediction.DATA, Prediction.VELOCITY, Rectified().at(torch.tensor(0.05)))
    assert float(at_bound.from_value) == pytest.approx(-20)


def test_the_exact_velocity_is_the_minimum():
    """Of a·v*(x_t) over a, the loss is least at a = 1: the optimum is the conditional mean."""
    oracle = ring()
    x = oracle.means[torch.arange(40_000) % 8] + 0.2 * noise(40_000, 2, seed=2)
    z, t = noise(40_000, 2, seed=3), torch.rand(40_000, generator=torch.Generator().manual_seed(0)).double()

    class Scaled(nn.Module):
        def forward(self, x_t, t, condition):
            return scale * oracle.estimate(x_t, t.double()).velocity

    losses = {}
    for scale in (0.95, 1.0, 1.05):
        losses[scale] = float(flow_matching_loss(Flow(Scaled()), x, t, z).mean())
    assert losses[1.0] < min(losses[0.95], losses[1.05])
    vertex = 0.05 / 2 * (losses[0.95] - losses[1.05]) / (losses[0.95] - 2 * losses[1.0] + losses[1.05])
    assert abs(vertex) < 0.01  # the parabola's minimum, from a = 1


def test_gradient_against_finite_differences():
    x, z, t = noise(3, 4), noise(3, 4, seed=1), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    network = Constant(0.3)
    flow_matching_loss(Flow(network, prediction="noise"), x, t, z).mean().backward()
    with torch.no_grad():
        below, above = (
            flow_matching_loss(Flow(Constant(value), prediction="noise"), x, t, z).mean()
            for value in (0.3 - 1e-5, 0.3 + 1e-5)
        )
    assert float(network.value.grad) == pytest.approx(float(above - below) / 2e-5, rel=1e-6)
