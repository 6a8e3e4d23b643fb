"""Stochastic solvers: their law on exact fields, their limits, their densities, and the noise that they draw."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import AbstractFlow, Estimate
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Rectified
from rectiflow.flow.source import Gaussian
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.sample import log_probability, sample, trajectory
from rectiflow.sampling.solvers import SOLVERS, solver
from rectiflow.sampling.stochastic import Noise, Stochastic
from tests.flow.oracles import PATHS, noise, ring

NAMES = [name for name in SOLVERS if isinstance(solver(name), Stochastic)]
VARIANTS = [
    *NAMES,
    "sde:epsilon=t",
    "sde:epsilon=sin2",
    "sde:epsilon=constant,scale=0.3",
    "ddpm:eta=0.5",
    "pc:scale=0.5",
]


def distance(flow, x):
    """Mean W1 to the exact distribution over four projections; sampling alone gives about .008 at 20,000."""
    total, points = 0.0, torch.linspace(-4, 4, 2001, dtype=torch.float64)
    for k in range(4):
        angle = torch.tensor(0.1 + k * math.pi / 4, dtype=torch.float64)
        direction = torch.stack([angle.cos(), angle.sin()])
        exact = torch.special.ndtr((points[:, None] - flow.means @ direction) / 0.2).mean(1)
        found = torch.searchsorted((x @ direction).sort().values, points).double() / len(x)
        total += float((found - exact).abs().mean() * 8) / 4
    return total


def off(description, given=None):
    """Distance, and error of the standard deviation (1 per axis), of 20,000 points after 64 evaluations."""
    flow, method = ring(), solver(description, given)
    z = Key(5, "noise").normal(torch.arange(20_000), (2,)).double()
    x = sample(flow, z, method, 64 // method.evaluations)
    return distance(flow, x), float((x.std(0) - 1).abs().max())


@pytest.mark.parametrize("description", VARIANTS)
def test_the_distribution_is_that_of_the_data(description):
    far, spread = off(description)
    assert far <= 0.02
    assert spread <= 0.015


@pytest.mark.parametrize("name", NAMES)
def test_wrong_noise_would_be_seen(name):
    class Weak:
        def __call__(self, step, number, like):
            return 0.8 * Noise()(step, number, like)

    far, spread = off(name, Weak())
    assert far > 0.02 or spread > 0.015


@pytest.mark.parametrize("path", sorted(set(PATHS) - {"root"}))
@pytest.mark.parametrize("name", NAMES)
def test_gaussian_data_on_every_path(name, path):
    flow = GaussianFlow(torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5, PATHS[path])
    grid = "uniform" if path in ("rectified", "trig", "quadratic") else "log-snr"
    x = sample(flow, noise(4000, 2), solver(name), 250, grid=grid)
    assert torch.allclose(x.mean(0), flow.mean, atol=0.04)
    assert torch.allclose(x.std(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.03)


def test_limits_without_noise():
    """ε = 0 and r = 0 are Euler's method and γ = 0 Heun's, bit for bit; η = 0 is DDIM, which is Euler's here."""
    flow, z = ring(), noise(50, 2)
    euler, heun = sample(flow, z, solver("euler"), 12), sample(flow, z, solver("heun"), 12)
    for kind in ("t", "sbdm", "constant", "sin2"):
        assert torch.equal(sample(flow, z, solver(f"sde:epsilon={kind},scale=0"), 12), euler)
    assert torch.equal(sample(flow, z, solver("edm:churn=0"), 12), heun)
    assert torch.allclose(sample(flow, z, solver("pc:snr=0,scale=0"), 12), euler, atol=1e-14)
    assert torch.allclose(sample(flow, z, solver("ddpm:eta=0"), 12), euler, atol=1e-12)
    assert not torch.allclose(sample(flow, z, solver("ddpm:eta=0.1"), 12), euler, atol=1e-3)


def test_steps_by_hand():
    """Mean and deviation of the step 0.7 → 0.4 on the rectified path."""
    flow, x = ring(), noise(30, 2)
    t, s = torch.tensor([0.7, 0.4], dtype=torch.float64)
    at = flow.estimate(x, t)
    kept = 0.3 * 0.4 / (0.6 * 0.7)
    variance = 0.25 * 0.16 * (1 - kept**2)
    expected = {
        "sde": (x - 0.3 * (at.velocity + 0.7 / 0.3 / 0.7 * at.noise), math.sqrt(2 * 0.7 / 0.3 * 0.3)),
        "sde:epsilon=t,scale=0.5": (x - 0.3 * (at.velocity + 0.5 * at.noise), math.sqrt(0.7 * 0.3)),
        "sde:epsilon=constant": (x - 0.3 * (at.velocity + at.noise / 0.7), math.sqrt(2 * 0.3)),
        "ddpm:eta=0.5": (0.6 * at.data + math.sqrt(0.16 - variance) * at.noise, math.sqrt(variance)),
        "sde-dpm++2m": (
            0.4 / 0.7 * kept * x + 0.6 * (1 - kept**2) * at.data,
            0.4 * math.sqrt(1 - kept**2),
        ),
    }
    for description, (mean, std) in expected.items():
        method = solver(description)
        x_s, history = method.step(flow.estimate, x, t, s, ())
        (drawn,) = method.transitions(history)
        assert torch.allclose(drawn.mean, mean, atol=1e-12), description
        assert drawn.std == pytest.approx(std), description
        assert torch.equal(x_s, drawn.value)


def test_churn_adds_what_it_says():
    """x̂ at t̂ is x/α + noise of variance σ̂² − σ², times α̂; the step after goes from t̂ to s."""
    flow, x = ring(), noise(30, 2)
    times = [torch.tensor(t, dtype=torch.float64) for t in (0.9, 0.6, 0.4)]
    method = solver("edm:churn=0.3")
    x, history = method.step(flow.estimate, x, *times[:2], ())
    assert method.transitions(history) == ()
    x_s, history = method.step(flow.estimate, x, *times[1:], history)
    (drawn,) = method.transitions(history)
    sigma = 1.3 * 1.5
    later = torch.tensor(sigma / (1 + sigma), dtype=torch.float64)
    assert torch.allclose(drawn.mean, x / 0.4 * (1 - later), atol=1e-12)
    assert drawn.std == pytest.approx(float((1 - later) * math.sqrt(sigma**2 - 1.5**2)))
    assert torch.allclose(x_s, solver("heun").step(flow.estimate, drawn.value, later, times[2], ())[0], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_densities_are_those_of_torch(name):
    states = list(trajectory(ring(), noise(6, 2), time_grid(9), solver(name)))
    transitions = [drawn for state in states for drawn in state.transitions]
    expected = sum(Normal(drawn.mean, drawn.std).log_prob(drawn.value).sum(1) for drawn in transitions)
    assert torch.allclose(log_probability(states), expected, atol=1e-9)
    assert states[0].transitions == ()
    assert states[-1].transitions == () or name == "edm"  # whose noise comes before its step
    if name not in ("edm", "pc"):
        assert all(torch.equal(state.x_t, drawn.value) for state in states for drawn in state.transitions)


def test_a_path_replayed_under_another_flow_has_its_density_there():
    """As a policy gradient needs: hold the states, ask another flow for their density, differentiate."""
    z, grid = noise(5, 2), time_grid(8)
    recorded = list(trajectory(GaussianFlow(torch.zeros(2), 0.5), z, grid, solver("ddpm")))
    mean = torch.tensor([0.3, -0.1], dtype=torch.float64, requires_grad=True)
    other = GaussianFlow(mean, 0.7)
    replay = trajectory(other, z, grid, solver("ddpm", Noise(9)), hook=lambda state: recorded[state.step].x_t)
    total = sum(drawn.log_density(recorded[state.step].x_t) for state in replay for drawn in state.transitions)
    (slope,) = torch.autograd.grad(total.sum(), mean)
    assert bool((slope != 0).all())

    by_hand = torch.zeros(5, dtype=torch.float64)
    for (before, after), (t, s) in zip(pairwise(recorded[:-1]), pairwise(grid[:-1]), strict=True):
        at = other.estimate(before.x_t, t)
        variance = s**2 * (1 - ((1 - t) * s / ((1 - s) * t)) ** 2)
        centre = (1 - s) * at.data + (s**2 - variance).sqrt() * at.noise
        by_hand = by_hand + Normal(centre, variance.sqrt()).log_prob(after.x_t).sum(1)
    assert torch.allclose(total, by_hand, atol=1e-9)


def test_a_deterministic_solver_draws_nothing():
    assert float(log_probability(trajectory(ring(), noise(2, 2), time_grid(3), solver("ab2")))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_depend_on_its_batch(name):
    flow, z = GaussianFlow(torch.zeros(3), 0.5), noise(6, 3)
    whole = sample(flow, z, solver(name, Noise(4)), 7)
    rows = torch.tensor([1, 4, 5])
    assert torch.equal(sample(flow, z[rows], solver(name, Noise(4, rows)), 7), whole[rows])
    assert not torch.allclose(sample(flow, z, solver(name, Noise(5)), 7), whole, atol=0.01)


def test_draws_are_keyed_and_differ():
    like = torch.zeros(3, 4)
    index = torch.tensor([7, 0, 2])
    assert torch.equal(Noise(3, index)(2, 0, like), Key(3, "sampler noise", 2).normal(index, (4,)))
    seen = [Noise()(step, number, like) for step in (0, 1) for number in (0, 1)]
    seen.append(Key(0, "noise").normal(torch.arange(3), (4,)))
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("name", NAMES)
def test_without_a_score_it_is_refused(name):
    class Coupled(AbstractFlow):
        schedule, source = Rectified(), Gaussian()

        def estimate(self, x_t, t, condition=None, s=None):
            return Estimate(x_t, t, x_t, Prediction.VELOCITY, self.schedule, "x and z are coupled")

    with pytest.raises(InputError, match="needs the score: x and z are coupled") as error:
        sample(Coupled(), noise(2, 2), solver(name), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("ddpm:eta=1.5", "ddpm:eta must be from 0 to 1, received 1.5"),
        ("ddpm:eta=nan", "ddpm:eta must be"),
        ("sde:scale=-1", "sde:scale must be at least 0"),
        ("sde:epsilon=tt", "unknown epsilon"),
        ("edm:churn=1", "edm:churn must be from 0 to 0.4142"),
        ("pc:snr=2", "pc:snr must be"),
        ("sde-dpm++2m:eta=1", "has no settings"),
    ],
)
def test_bad_settings(description, message):
    with pytest.raises(InputError, match=message) as error:
        solver(description)
    assert "\n" not in str(error.value)
