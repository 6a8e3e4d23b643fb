"""Order and error of each solver on exact fields: `expected` are published in docs/formalism.md, within ±25 %."""

import math
from functools import cache
from itertools import pairwise
from typing import get_args

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import AbstractFlow, Estimate
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Rectified, Trig
from rectiflow.sampling.config import SolverName
from rectiflow.sampling.exponential import UniPC, _used, exact
from rectiflow.sampling.grids import log_snr_grid, time_grid
from rectiflow.sampling.guidance import ClassifierFree, guided
from rectiflow.sampling.sample import sample, trajectory
from rectiflow.sampling.solvers import SOLVERS, adams_weights, solver
from tests.flow.oracles import PATHS, high_dimensional, noise, ring

ERRORS = {  # solver: problem: error per coordinate at 10, 20, 50 and 100 evaluations
    "euler": {"A": (5.2e-2, 2.7e-2, 1.1e-2, 5.5e-3), "G": (4.4e-2, 2.2e-2, 8.9e-3, 4.5e-3)},
    "heun": {"A": (2.3e-2, 5.9e-3, 1.2e-3, 3.2e-4), "G": (2.9e-2, 6.3e-3, 1.2e-3, 3.1e-4)},
    "midpoint": {"A": (1.1e-2, 2.4e-3, 4.8e-4, 1.3e-4), "G": (3.1e-2, 6.1e-3, 8.6e-4, 2.1e-4)},
    "rk4": {"A": (3.0e-2, 1.7e-3, 1.0e-4, 6.9e-6), "G": (None, 2.3e-3, 9.4e-5, 6.1e-6)},
    "ab2": {"A": (1.5e-2, 3.6e-3, 5.3e-4, 1.3e-4), "G": (2.9e-2, 7.4e-3, 1.2e-3, 2.8e-4)},
    "ab2-pec": {"A": (1.2e-2, 1.4e-3, 1.9e-4, 3.6e-5), "G": (1.2e-2, 2.1e-3, 3.3e-4, 7.1e-5)},
    "dpm++2m": {"A": (3.4e-2, 1.0e-2, 1.2e-3, 6.1e-4), "G": (5.5e-2, 1.3e-2, 2.1e-3, 9.5e-4)},
    "unipc2": {"A": (3.6e-2, 9.1e-3, 7.5e-4, 2.8e-4), "G": (4.7e-2, 9.6e-3, 1.1e-3, 4.1e-4)},
    "trig-ab1": {"A": (1.5e-2, 7.5e-3, 3.0e-3, 1.5e-3), "G": (4.1e-2, 2.1e-2, 8.3e-3, 4.1e-3)},
    # Published for a start by Euler's step, with which it is 1.2e-2, 9.9e-4, 1.0e-4, 1.8e-5 on A.
    "ab3": {"A": (1.8e-2, 9.0e-4, 9.3e-5, 1.25e-5), "G": (1.7e-2, 7.3e-4, 8.7e-5, 1.25e-5)},
    # Not published: as first measured, to notice a change.
    "unipc3": {"A": (3.9e-2, 1.07e-2, 3.5e-4, 1.07e-4), "G": (4.25e-2, 9.5e-3, 3.7e-4, 1.5e-4)},
    "exp-ab2": {"A": (3.8e-2, 1.2e-2, 1.8e-3, 8.2e-4), "G": (6.1e-2, 1.4e-2, 2.8e-3, 1.2e-3)},
    "exp-ab3": {"A": (4.5e-2, 1.39e-2, 1.13e-3, 2.1e-4), "G": (4.7e-2, 1.24e-2, 9.5e-4, 2.6e-4)},
    "trig-ab2": {"A": (1.6e-2, 4.5e-3, 7.6e-4, 1.9e-4), "G": (3.4e-2, 9.8e-3, 1.65e-3, 4.2e-4)},
}
FIXED = sorted(ERRORS)  # deterministic, with a number of steps given
CONVERGES = {"unipc2": 0.4, "unipc3": 0.4, "exp-ab3": 0.4}  # slower to show their order: how far off it they are
IN_MANY_DIMENSIONS = {
    "euler": (3.0e-2, 1.2e-2),
    "heun": (6.3e-3, 1.4e-3),
    "midpoint": (4.9e-3, 1.2e-3),
    "rk4": (4.1e-3, 8.7e-4),
    "ab2": (4.6e-3, 1.1e-3),
    "ab2-pec": (3.6e-3, 5.3e-4),
    "dpm++2m": (9.0e-3, 3.0e-3),
    "unipc2": (3.8e-3, 1.07e-3),  # where the first step is not corrected, 7.1e-3 and 1.4e-3
    "trig-ab1": (1.4e-2, 5.8e-3),
    "ab3": (1.5e-3, 4.1e-4),  # with a start by Euler's step 6.1e-3 and 9.4e-4
}
ON_OTHER_GRIDS = {  # grid: solver: error on problem A at 10, 20 and 50 evaluations
    "shift 3": {
        "euler": (0.096, 0.046, 0.019),
        "heun": (0.14, 0.042, 0.0056),
        "midpoint": (0.12, 0.024, 0.0017),
        "ab2": (0.098, 0.033, 0.0051),
        "ab2-pec": (0.10, 0.034, 0.0016),
        "dpm++2m": (0.073, 0.043, 0.013),
        "unipc2": (0.074, 0.043, 0.012),
    },
    "log-snr": {
        "euler": (0.25, 0.099, 0.036),
        "heun": (0.21, 0.062, 0.0072),
        "midpoint": (0.26, 0.074, 0.0056),
        "ab2": (0.096, 0.023, 0.0050),
        "ab2-pec": (0.036, 0.011, 0.0017),
        "dpm++2m": (0.16, 0.049, 0.0054),
        "unipc2": (0.18, 0.028, 0.0017),
    },
    "karras": {
        "euler": (0.13, 0.061, 0.023),
        "heun": (0.18, 0.027, 0.0034),
        "midpoint": (0.13, 0.018, 0.0028),
        "ab2": (0.043, 0.012, 0.0026),
        "ab2-pec": (0.019, 0.0081, 0.00087),
        "dpm++2m": (0.20, 0.030, 0.0032),
        "unipc2": (0.20, 0.012, 0.00076),
    },
}


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
@pytest.mark.parametrize("name", FIXED)
def test_error_on_the_ring(name, which):
    flow, condition, guidance, z, reference = problem(which)
    for evaluations, expected in zip((10, 20, 50, 100), ERRORS[name][which], strict=True):
        if expected is None:
            continue
        steps = (evaluations - solver(name).starting) // solver(name).evaluations
        x = sample(flow, z, solver(name), steps, condition, guidance)
        assert (x - reference).square().mean().sqrt() == pytest.approx(expected, rel=0.25)


def published_grid(kind, steps):
    if kind == "shift 3":
        return time_grid(steps, shift_by=3.0)
    if kind == "karras":
        return time_grid(steps, kind="karras")
    # Published with N−1 times from log(α/β) = −8 to 8 and the ends beyond them, at one spacing more on each side.
    return log_snr_grid(Rectified(), steps, 1.0, 0.0, clip=16 * steps / (steps - 2))


@pytest.mark.parametrize("kind", sorted(ON_OTHER_GRIDS))
@pytest.mark.parametrize("name", sorted(ON_OTHER_GRIDS["karras"]))
def test_error_on_other_grids(name, kind):
    flow, _, _, z, reference = problem("A")
    for evaluations, expected in zip((10, 20, 50), ON_OTHER_GRIDS[kind][name], strict=True):
        grid = published_grid(kind, evaluations // solver(name).evaluations)
        *_, last = trajectory(flow, z, grid, solver(name))
        assert (last.x_t - reference).square().mean().sqrt() == pytest.approx(expected, rel=0.25)


@pytest.fixture(scope="module")
def many_dimensions():
    flow, z = high_dimensional(), noise(48, 1024, seed=1)
    return flow, z, sample(flow, z, solver("ab3"), 200)


@pytest.mark.parametrize("name", sorted(IN_MANY_DIMENSIONS))
def test_error_in_many_dimensions(name, many_dimensions):
    """The median over particles: a few fall into another basin and would dominate a mean."""
    flow, z, reference = many_dimensions
    for evaluations, expected in zip((20, 50), IN_MANY_DIMENSIONS[name], strict=True):
        x = sample(flow, z, solver(name), (evaluations - solver(name).starting) // solver(name).evaluations)
        error = (x - reference).square().mean(1).sqrt().median()
        assert error == pytest.approx(expected, rel=0.5)


@pytest.fixture(scope="module")
def interior():
    flow, x = ring(), 0.95 * noise(200, 2)
    return flow, x, solve(lambda x, t: flow.estimate(x, t).velocity, 0.95, 0.05, x)


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("name", FIXED)
def test_order_of_convergence(name, shift, interior):
    """Inside the interval, so that no end disturbs it; on an uneven grid too."""
    flow, x, reference = interior
    errors = []
    for steps in (160, 320) if name != "rk4" else (40, 80):
        *_, last = trajectory(flow, x, time_grid(steps, 0.95, 0.05, shift), solver(name))
        errors.append((last.x_t - reference).square().mean().sqrt())
    off = CONVERGES.get(name, 0.15)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver(name).order, abs=off)


@pytest.mark.parametrize("name", FIXED)
def test_unit_gaussian_comes_back(name):
    """Data N(0, I): ς_0/ς_1 = 1, so x_0 = z."""
    z = noise(20, 3)
    x = sample(GaussianFlow(torch.zeros(3), 1.0), z, solver(name), 400)
    assert (x - z).abs().max() < (0.02 if solver(name).order == 1 else 1e-4)


@pytest.mark.parametrize("name", sorted({*FIXED} - {"euler", "trig-ab1"}))
@pytest.mark.parametrize("path", sorted(PATHS))
def test_gaussian_closed_form(path, name):
    """Every path, marched from its own noisiest to its own cleanest time."""
    grid = "uniform" if path in ("rectified", "trig", "quadratic") else "log-snr"
    path, mean, z = PATHS[path], torch.tensor([1.0, -2.0], dtype=torch.float64), noise(20, 2)
    flow = GaussianFlow(mean, 0.3, path)
    start, end = torch.tensor([path.t_max, path.t_min], dtype=torch.float64)
    x = sample(flow, z, solver(name), 400, grid=grid)
    assert torch.allclose(x, flow.flow_map(path.prior_std * z, start, end), atol=3e-3)
    assert torch.allclose(x, mean + 0.3 * z, atol=0.06)  # 0.0066/0.3 is what VP-linear lacks of pure noise


def test_one_step_of_the_data_prediction_is_ddim():
    """DPM-Solver++ of first order ≡ Euler on the rectified path ≡ x_s = α_s x̂ + β_s ẑ."""
    flow, x = ring(), noise(30, 2)
    t, s = torch.tensor([0.7, 0.4], dtype=torch.float64)
    first, _ = solver("dpm++2m").step(flow.estimate, x, t, s, ())
    estimate = flow.estimate(x, t)
    assert torch.allclose(first, 0.6 * estimate.data + 0.4 * estimate.noise, atol=1e-12)
    assert torch.allclose(first, solver("euler").step(flow.estimate, x, t, s, ())[0], atol=1e-12)


def test_the_path_does_not_matter_to_the_data_prediction():
    """At the same log-SNRs, rectified and trig give the same pictures to a solver in log-SNR."""
    z = noise(30, 2)
    grid = time_grid(12, kind="log-snr")
    trig = Trig().time_of(Rectified().log_snr(grid))
    *_, mine = trajectory(ring(), z, grid, solver("dpm++2m"))
    *_, other = trajectory(ring(Trig()), z, trig, solver("dpm++2m"))
    assert torch.allclose(mine.x_t, other.x_t, atol=1e-10)


def test_correction_by_hand():
    """x* by AB2, then (v_t + v*)/2 over the step, in two steps; a hook's change stays."""
    flow, x, grid = ring(), noise(30, 2), [torch.tensor(t, dtype=torch.float64) for t in (0.9, 0.7, 0.4)]
    v_0 = flow.estimate(x, grid[0]).velocity
    predicted = x - 0.2 * v_0
    v_1 = flow.estimate(predicted + 0.5, grid[1]).velocity
    corrected = x - 0.2 * (v_0 + v_1) / 2 + 0.5
    expected = corrected - 0.3 * ((1 + 1.5 / 2) * v_1 - 1.5 / 2 * v_0)
    pec = solver("ab2-pec")
    first, history = pec.step(flow.estimate, x, *grid[:2], ())
    assert torch.allclose(first, predicted, atol=1e-12)
    second, _ = pec.step(flow.estimate, first + 0.5, *grid[1:], history)
    assert torch.allclose(second, expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", ["trig-ab1", "trig-ab2"])
@pytest.mark.parametrize("path", ["rectified", "trig", "quadratic"])
def test_the_angle_is_exact_for_unit_gaussians(path, name, steps):
    """On the trigonometric path data N(0, I) stand still; at t_min of another, x = z·ς(t_min)."""
    flow, z = GaussianFlow(torch.zeros(3), 1.0, PATHS[path]), noise(5, 3)
    end = flow.schedule.at(torch.tensor(flow.schedule.t_min))
    assert torch.allclose(sample(flow, z, solver(name), steps), z * torch.hypot(end.alpha, end.beta), atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [1e-3, 0.4, 0.999, 1.0, 6.0])
def test_exponential_moments(eta, order):
    """Against the quadrature of ∫₀^η e^(u−η)(u/η)^k du."""
    for k, moment in enumerate(exact(eta, order)):
        expected = quad(lambda u, k=k: math.exp(u - eta) * (u / eta) ** k, 0, eta, epsabs=0, epsrel=1e-12)[0]
        assert float(moment) == pytest.approx(expected, rel=1e-11)


def test_data_that_are_a_polynomial_are_integrated_exactly():
    """x̂ = a + bℓ + cℓ² alone decides x: three predictions hit ∫e^(u−η)x̂ du, two miss it."""
    path, times = Rectified(), torch.tensor([0.8, 0.6, 0.5, 0.42], dtype=torch.float64)

    def data(t):
        ell = path.log_snr(t) / 2
        return (1 + 2 * ell - ell**2).reshape(1, 1)

    def field(x, t):
        return Estimate(x, t, data(t), Prediction.DATA, path)

    def integral(t, s):
        low, high = (path.log_snr(torch.stack([t, s])) / 2).tolist()
        return quad(lambda ell: math.exp(ell - high) * (1 + 2 * ell - ell**2), low, high, epsrel=1e-12)[0]

    for name, hits in (("exp-ab3", True), ("exp-ab2", False)):
        x, history = torch.ones(1, 1, dtype=torch.float64), ()
        for t, s in pairwise(times):
            before = x
            x, history = solver(name).step(field, x, t, s, history)
        t, s = times[-2:]
        expected = s / t * before + (1 - s) * integral(t, s)
        assert torch.allclose(x, expected, atol=1e-12) == hits


def test_unipc_by_hand():
    """Two steps of UniPC-1: DDIM, corrected by half the change of x̂; and a hook's change stays."""
    flow, x, times = ring(), noise(30, 2), [torch.tensor(t, dtype=torch.float64) for t in (0.9, 0.7, 0.4)]
    at = [flow.schedule.at(t) for t in times]
    data = [flow.estimate(x, times[0]).data]
    totals = [there.alpha - here.alpha * there.beta / here.beta for here, there in pairwise(at)]
    predicted = at[1].beta / at[0].beta * x + totals[0] * data[0]
    data.append(flow.estimate(predicted + 0.5, times[1]).data)
    corrected = predicted + 0.5 + totals[0] * (data[1] - data[0]) / 2
    expected = at[2].beta / at[1].beta * corrected + totals[1] * data[1]
    first, history = UniPC(1).step(flow.estimate, x, *times[:2], ())
    assert torch.allclose(first, predicted, atol=1e-12)
    second, _ = UniPC(1).step(flow.estimate, first + 0.5, *times[1:], history)
    assert torch.allclose(second, expected, atol=1e-12)


def test_fast_is_ab3_made_safe():
    """The same on a uniform grid; where steps grow quickly, one order lower and far nearer."""
    flow, z = high_dimensional(), noise(16, 1024, seed=1)
    assert torch.equal(sample(flow, z, solver("fast"), 9), sample(flow, z, solver("ab3"), 9))
    grid, reference = time_grid(8, shift_by=12.0), sample(flow, z, solver("ab3"), 200)
    error = {}
    for name in ("ab3", "fast"):
        *_, last = trajectory(flow, z, grid, solver(name))
        error[name] = float((last.x_t - reference).square().mean(1).sqrt().median())
    assert error["ab3"] > 0.4
    assert error["fast"] < 0.3


def test_unipc_corrects_a_step_from_infinite_log_snr_by_half():
    flow, z = ring(), noise(30, 2)
    x = {name: sample(flow, z, solver(name), 2) for name in ("unipc2", "unipc3")}
    data = flow.estimate(z, torch.tensor(1.0)).data
    middle = 0.5 * z + 0.5 * data
    corrected = flow.estimate(middle, torch.tensor(0.5)).data  # of which the second step is all
    assert torch.allclose(x["unipc2"], corrected, atol=1e-12)
    three = [torch.tensor(t, dtype=torch.float64) for t in (1.0, 0.6, 0.3)]
    first, history = UniPC(2).step(flow.estimate, z, *three[:2], ())
    second, _ = UniPC(2).step(flow.estimate, first, *three[1:], history)
    after = flow.estimate(first, three[1]).data
    corrected = 0.6 * z + 0.4 * (data + after) / 2
    assert torch.allclose(second, 0.5 * corrected + (0.7 - 0.4 * 0.5) * after, atol=1e-12)


def test_a_parabola_is_not_stretched_far():
    """A step in ℓ more than 1.5 times the last uses two predictions, a shorter one three."""
    path = Rectified()
    past = tuple((t, torch.zeros(1)) for t in (0.3, 0.4, 0.5))  # ℓ = 0.847, 0.405, 0
    for end, count in ((0.2, 3), (0.182, 3), (0.18, 2), (0.0, 2)):  # 0.847 + 1.5·0.442 is ℓ at 0.181
        assert len(_used(path, past, torch.tensor(end, dtype=torch.float64))[0]) == count


def test_adams_weights_of_two_nodes():
    weights = adams_weights([0.6, 0.9], 0.6, 0.4)  # h = −0.2, last step −0.3: ρ = 2/3
    assert weights == pytest.approx([-0.2 * (1 + 1 / 3), 0.2 / 3])
    assert adams_weights([0.6], 0.6, 0.4) == pytest.approx([-0.2])


@pytest.mark.parametrize("nodes", [[0.5], [0.5, 0.7], [0.5, 0.7, 1.0]])
def test_adams_weights_integrate_polynomials(nodes):
    for degree in range(len(nodes)):
        total = sum(w * node**degree for w, node in zip(adams_weights(nodes, 0.5, 0.2), nodes, strict=True))
        assert total == pytest.approx((0.2 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1))


@pytest.mark.parametrize("name", FIXED)
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
    assert len(calls) == 7 * solver(name).evaluations + solver(name).starting


def test_settings_know_every_solver():
    assert get_args(SolverName) == tuple(SOLVERS)


def test_unknown_solver():
    with pytest.raises(InputError, match="Did you mean 'heun'"):
        solver("huen")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("rk45:tol=1", "Did you mean 'tolerance'"),
        ("rk45:tolerance=small", "solver rk45: tolerance expects a number such as 1e-05, received 'small'"),
        ("rk45:tolerance", "received ''"),
        ("euler:eta=1", "euler has no settings"),
        ("unipc", "Did you mean 'unipc"),
    ],
)
def test_bad_settings_of_a_solver(description, message):
    with pytest.raises(InputError, match=message) as error:
        solver(description)
    assert "\n" not in str(error.value)
