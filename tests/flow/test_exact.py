import pytest
import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow, GaussianMixtureFlow
from rectiflow.flow.schedule import Rectified
from tests.flow.oracles import PATHS, noise, ring

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


@pytest.fixture(params=sorted(PATHS))
def path(request):
    return PATHS[request.param]


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_one_component_is_the_gaussian(path, t):
    x, t = noise(7, 3), torch.tensor(t, dtype=torch.float64).clamp(path.t_min, path.t_max)
    gaussian = GaussianFlow(MEAN, 0.4, path).estimate(x, t)
    mixture = GaussianMixtureFlow(MEAN[None], 0.4, schedule=path).estimate(x, t)
    assert torch.allclose(gaussian.velocity, mixture.velocity, atol=1e-12)
    assert torch.allclose(gaussian.data, mixture.data, atol=1e-12)


def test_score_is_the_gradient_of_the_log_density(path):
    flow, t = ring(path), torch.tensor(0.4, dtype=torch.float64)
    for condition in (None, Condition(torch.zeros(20, dtype=torch.int64))):
        x = noise(20, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(flow.log_density(x, t, condition).sum(), x)
        assert torch.allclose(flow.estimate(x.detach(), t, condition).score, gradient, atol=1e-10)


def test_tweedie(path):
    """x̂ = (x_t + β²∇log p_t)/α and ẑ = −β∇log p_t, from the gradient of the closed-form density alone."""
    flow, t = ring(path), torch.tensor(0.4, dtype=torch.float64)
    at, x = path.at(t), noise(20, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_density(x, t).sum(), x)
    estimate = flow.estimate(x.detach(), t)
    assert torch.allclose(estimate.data, (x.detach() + at.beta**2 * gradient) / at.alpha, atol=1e-10)
    assert torch.allclose(estimate.noise, -at.beta * gradient, atol=1e-10)


def test_velocity_obeys_the_continuity_equation():
    """∂_t p + ∇·(p v) = 0, as ∂_t log p + v·∇log p + ∇·v = 0."""
    flow, t, h = ring(), torch.tensor(0.4, dtype=torch.float64), 1e-5
    x = noise(30, 2).requires_grad_()
    estimate = flow.estimate(x, t)
    rows = [torch.autograd.grad(estimate.velocity[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
    divergence = rows[0] + rows[1]
    change = (flow.log_density(x, t + h) - flow.log_density(x, t - h)) / (2 * h)
    residual = change + (estimate.velocity * estimate.score).sum(1) + divergence
    assert residual.abs().max() < 1e-6


def test_divergence_of_the_gaussian(path):
    flow, t = GaussianFlow(MEAN, 0.4, path), torch.tensor(0.3, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: flow.estimate(x[None], t).velocity[0])(noise(1, 3)[0])
    assert torch.allclose(torch.trace(jacobian), flow.divergence(t), atol=1e-12)


def test_flow_map_solves_the_equation(path):
    flow, x = GaussianFlow(MEAN, 0.4, path), noise(5, 3)
    t, s, h = (torch.tensor(value, dtype=torch.float64) for value in (0.8, 0.3, 1e-5))
    slope = (flow.flow_map(x, t, s + h) - flow.flow_map(x, t, s - h)) / (2 * h)
    assert torch.allclose(slope, flow.estimate(flow.flow_map(x, t, s), s).velocity, atol=1e-8)
    assert torch.allclose(flow.flow_map(flow.flow_map(x, t, s), s, t), x, atol=1e-12)


def test_average_velocity_identity():
    """u = v − (t−s)·du/dt along the trajectory, with du/dt = ∂_x u·v + ∂_t u."""
    flow, x, s = GaussianFlow(MEAN, 0.4), noise(5, 3), 0.2
    t = torch.tensor(0.7, dtype=torch.float64)
    v = flow.estimate(x, t).velocity
    u, total = torch.func.jvp(lambda x, t: flow.estimate(x, t, s=s).value, (x, t), (v, torch.ones_like(t)))
    assert (u - (v - (t - s) * total)).abs().max() < 1e-12


def test_one_step_of_the_average_velocity_is_exact(path):
    flow, z = GaussianFlow(MEAN, 0.4, path), noise(5, 3)
    start, end = torch.tensor([path.t_max, path.t_min], dtype=torch.float64)
    alpha = path.at(start).alpha
    x_1 = alpha * MEAN + (0.4**2 * alpha**2 + path.prior_std**2).sqrt() * z  # as p_1 is, pure noise or not
    x = x_1 - (start - end) * flow.estimate(x_1, start, s=float(end)).velocity
    assert torch.allclose(x, MEAN + 0.4 * z, atol=0.01)
    if path.log_snr_range == (-torch.inf, torch.inf):
        assert torch.allclose(x, MEAN + 0.4 * z, atol=1e-12)
    assert torch.allclose(flow.flow_map(x_1, start, end), x, atol=1e-12)


def test_an_average_velocity_gives_nothing_else():
    with pytest.raises(InputError, match="average velocity"):
        _ = GaussianFlow(MEAN, 0.4).estimate(noise(1, 3), torch.tensor(0.5), s=0.1).data


def test_labels_choose_components():
    flow = GaussianMixtureFlow(torch.eye(3) * 5, 0.1)
    x = flow.estimate(noise(2, 3), torch.tensor(1.0), Condition(torch.tensor([2, 0]))).data
    assert torch.allclose(x, torch.tensor([[0.0, 0, 5], [5, 0, 0]], dtype=torch.float64))
    null = flow.estimate(noise(2, 3), torch.tensor(1.0), Condition(torch.tensor([-1, -1]))).data
    assert torch.allclose(null, torch.full((2, 3), 5 / 3, dtype=torch.float64))


def test_posterior_mean_by_monte_carlo():
    """x̂ = E[x | x_t], from samples of the ring weighted by p(x_t | x): the closed form against another route."""
    flow, t = ring(), torch.tensor(0.6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = flow.means[torch.randint(8, (400_000,), generator=generator)] + 0.2 * noise(400_000, 2, seed=1)
    at = Rectified().at(t)
    x_t = torch.tensor([[0.3, 0.5]], dtype=torch.float64)
    weights = torch.softmax(-((x_t - at.alpha * x) ** 2).sum(1) / (2 * at.beta**2), dim=0)
    assert torch.allclose((weights[:, None] * x).sum(0), flow.estimate(x_t, t).data[0], atol=0.01)
