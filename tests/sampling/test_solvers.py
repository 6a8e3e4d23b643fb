"""Order and error of each solver on exact fields: `expected` are published in docs/formalism.md, within ±25 %."""

import math
from functools import cache

import pytest
import torch
from scipy.integrate import solve_ivp

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import AbstractFlow
from rectiflow.flow.schedule import Trig
from rectiflow.sampling.guidance import ClassifierFree, guided
from rectiflow.sampling.sample import sample, time_grid, trajectory
from rectiflow.sampling.solvers import SOLVERS, adams_weights, solver
from tests.flow.oracles import high_dimensional, noise, ring

ERRORS = {  # solver: problem: error per coordinate at 10, 20, 50 and 100 evaluations
    "euler": {"A": (5.2e-2, 2.7e-2, 1.1e-2, 5.5e-3), "G": (4.4e-2, 2.2e-2, 8.9e-3, 4.5e-3)},
    "heun": {"A": (2.3e-2, 5.9e-3, 1.2e-3, 3.2e-4), "G": (2.9e-2, 6.3e-3, 1.2e-3, 3.1e-4)},
    "ab2": {"A": (1.5e-2, 3.6e-3, 5.3e-4, 1.3e-4), "G": (2.9e-2, 7.4e-3, 1.2e-3, 2.8e-4)},
}
IN_MANY_DIMENSIONS = {"euler": (3.0e-2, 1.2e-2), "heun": (6.3e-3, 1.4e-3), "ab2": (4.6e-3, 1.1e-3)}


def solve(field, start, end, x):
    """The reference solution of dx = field(x, t) dt."""

    def flat(t, y):
        return field(torch.from_numpy(y.reshape(x.shape)), torch.tensor(t, dtype=torch.float64)).numpy().ravel()

    solution = solve_ivp(flat, (start, end), x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1].reshape(x.shape))


@cache
def problem(name):
    """Flow, condition, guidance, noise and the reference solution."""
    flow, z = ring(), noise(400, 2)
    condition = Condition(torch.zeros(len(z), dtype=torch.int64)) if name == "G" else None
    guidance = ClassifierFree(2.0) if name == "G" else None
    reference = solve(lambda x, t: guided(flow, guidance, condition, x, t, t, None).velocity, 1, 0, z)
    return flow, condition, guidance, z, reference


@pytest.mark.parametrize("which", ["A", "G"])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_error_on_the_ring(name, which):
    flow, condition, guidance, z, reference = problem(which)
    for evaluations, expected in zip((10, 20, 50, 100), ERRORS[name][which], strict=True):
        steps = evaluations // solver(name).evaluations
        x = sample(flow, z, solver(name), steps, condition, guidance)
        assert (x - reference).square().mean().sqrt() == pytest.approx(expected, rel=0.25)


@pytest.fixture(scope="module")
def many_dimensions():
    flow, z = high_dimensional(), noise(48, 1024, seed=1)
    return flow, z, sample(flow, z, solver("ab2"), 400)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_error_in_many_dimensions(name, many_dimensions):
    """The median over particles: a few fall into another basin and would dominate a mean."""
    flow, z, reference = many_dimensions
    for evaluations, expected in zip((20, 50), IN_MANY_DIMENSIONS[name], strict=True):
        x = sample(flow, z, solver(name), evaluations // solver(name).evaluations)
        error = (x - reference).square().mean(1).sqrt().median()
        assert error == pytest.approx(expected, rel=0.5)


@pytest.fixture(scope="module")
def interior():
    flow, x = ring(), 0.95 * noise(200, 2)
    return flow, x, solve(lambda x, t: flow.estimate(x, t).velocity, 0.95, 0.05, x)


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_order_of_convergence(name, shift, interior):
    """Inside the interval, so that no end disturbs it; on an uneven grid too."""
    flow, x, reference = interior
    errors = []
    for steps in (160, 320):
        *_, last = trajectory(flow, x, time_grid(steps, 0.95, 0.05, shift), solver(name))
        errors.append((last.x_t - reference).square().mean().sqrt())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver(name).order, abs=0.15)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_unit_gaussian_comes_back(name):
    """Data N(0, I): ς_0/ς_1 = 1, so x_0 = z."""
    z = noise(20, 3)
    x = sample(GaussianFlow(torch.zeros(3), 1.0), z, solver(name), 400)
    assert (x - z).abs().max() < (0.02 if solver(name).order == 1 else 1e-4)


@pytest.mark.parametrize("path", [None, Trig()])
def test_gaussian_closed_form(path):
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    z = noise(20, 2)
    x = sample(GaussianFlow(mean, 0.3, path), z, solver("heun"), 400)
    assert torch.allclose(x, mean + 0.3 * z, atol=1e-4)


def test_adams_weights_of_two_nodes():
    weights = adams_weights([0.6, 0.9], 0.6, 0.4)  # h = −0.2, last step −0.3: ρ = 2/3
    assert weights == pytest.approx([-0.2 * (1 + 1 / 3), 0.2 / 3])
    assert adams_weights([0.6], 0.6, 0.4) == pytest.approx([-0.2])


@pytest.mark.parametrize("nodes", [[0.5], [0.5, 0.7], [0.5, 0.7, 1.0]])
def test_adams_weights_integrate_polynomials(nodes):
    for degree in range(len(nodes)):
        total = sum(w * node**degree for w, node in zip(adams_weights(nodes, 0.5, 0.2), nodes, strict=True))
        assert total == pytest.approx((0.2 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_evaluations_are_as_stated(name):
    calls = []

    class Counted(AbstractFlow):
        def __init__(self):
            self.inner = GaussianFlow(torch.zeros(2), 0.5)
            self.schedule, self.source = self.inner.schedule, self.inner.source

        def estimate(self, x_t, t, condition=None, s=None):
            calls.append(float(t))
            return self.inner.estimate(x_t, t, condition, s)

    sample(Counted(), noise(2, 2), solver(name), 7)
    assert len(calls) == 7 * solver(name).evaluations


def test_unknown_solver():
    with pytest.raises(InputError, match="Did you mean 'heun'"):
        solver("huen")
