"""RK45: its error follows the tolerance, and no sample depends on the batch it is in."""

import pytest
import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import AbstractFlow, Estimate
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Rectified
from rectiflow.flow.source import Gaussian
from rectiflow.sampling.adaptive import _ERROR, _NODES, _STAGES
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.guidance import ClassifierFree
from rectiflow.sampling.sample import sample, trajectory
from rectiflow.sampling.solvers import solver
from tests.flow.oracles import noise, ring
from tests.sampling.test_solvers import problem


def run(flow, z, tolerance, intervals=1, condition=None, guidance=None):
    grid = time_grid(intervals)
    *_, last = trajectory(flow, z, grid, solver(f"rk45:tolerance={tolerance}"), condition, guidance)
    return last


def test_the_tableau():
    """Rows sum to their node, and both formulas integrate polynomials: Σ b_i c_i^k = 1/(k+1) up to their order."""
    for row, node in zip(_STAGES, _NODES, strict=True):
        assert sum(row) == pytest.approx(node)
    nodes, fifth = (0.0, *_NODES), (*_STAGES[-1], 0.0)
    fourth = [b - e for b, e in zip(fifth, _ERROR, strict=True)]
    for weights, order in ((fifth, 5), (fourth, 4)):
        for k in range(order):
            assert sum(w * c**k for w, c in zip(weights, nodes, strict=True)) == pytest.approx(1 / (k + 1))


@pytest.mark.parametrize("which", ["A", "G"])
def test_error_follows_the_tolerance(which):
    flow, condition, guidance, z, reference = problem(which)
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        last = run(flow, z, tolerance, 1, condition, guidance)
        errors.append(float((last.x_t - reference).square().mean().sqrt()))
        evaluations.append(last.evaluations)
        assert errors[-1] < 5 * tolerance
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert evaluations[0] < evaluations[1] < evaluations[2] < 260


def test_a_sample_does_not_depend_on_its_batch():
    """Up to the rounding of the oracle, beside easy and beside hard neighbours, guided in an interval too."""
    flow, z = ring(), noise(12, 2)
    condition, guidance = Condition(torch.zeros(12, dtype=torch.int64)), ClassifierFree(2.0, (0.2, 0.8))
    whole = run(flow, z, 1e-4, 1, condition, guidance).x_t
    for part in (slice(3, 4), slice(0, 5), slice(5, 12)):
        alone = run(flow, z[part], 1e-4, 1, Condition(condition.labels[part]), guidance).x_t
        assert torch.allclose(whole[part], alone, rtol=0, atol=1e-12)


def test_one_norm_over_the_batch_would_be_seen():
    """The samples do take steps of their own: a distant one needs more evaluations than one at rest."""
    flow = ring()
    counts = [run(flow, z[None], 1e-6).evaluations for z in noise(12, 2)]
    assert len(set(counts)) > 1
    assert run(flow, noise(12, 2), 1e-6).evaluations >= max(counts)


@pytest.mark.parametrize("intervals", [1, 4])
def test_gaussian_closed_form_on_any_grid(intervals):
    z, mean = noise(20, 2), torch.tensor([1.0, -2.0], dtype=torch.float64)
    states = run(GaussianFlow(mean, 0.05), z, 1e-7, intervals)
    assert torch.allclose(states.x_t, mean + 0.05 * z, atol=1e-5)
    assert states.t == 0


def test_steps_say_nothing():
    flow, z = ring(), noise(5, 2)
    assert torch.equal(sample(flow, z, solver("rk45"), 50), sample(flow, z, solver("rk45"), 3))
    with pytest.raises(InputError, match="steps must be at least 1"):
        sample(flow, z, solver("rk45"), 0)


def test_a_tolerance_that_cannot_be_reached():
    class Jagged(AbstractFlow):
        schedule, source = Rectified(), Gaussian()

        def estimate(self, x_t, t, condition=None, s=None):
            return Estimate(x_t, t, torch.randn_like(x_t), Prediction.VELOCITY, self.schedule)

    with pytest.raises(InputError, match="does not reach tolerance 1e-09"):
        run(Jagged(), noise(2, 2), 1e-9)
    for tolerance in ("0", "2", "-1"):
        with pytest.raises(InputError, match="lies between 0 and 1"):
            solver(f"rk45:tolerance={tolerance}")
