import pytest
import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.flow import AbstractFlow
from rectiflow.sampling.guidance import ClassifierFree, guided
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import SOLVERS, solver
from rectiflow.sampling.stochastic import Stochastic
from tests.flow.oracles import noise, ring

T = torch.tensor(0.5, dtype=torch.float64)
LABELS = Condition(torch.zeros(6, dtype=torch.int64))


class Recorder(AbstractFlow):
    """The ring, remembering the labels of each call."""

    def __init__(self):
        self.inner, self.calls = ring(), []
        self.schedule, self.source = self.inner.schedule, self.inner.source

    def estimate(self, x_t, t, condition=None, s=None):
        self.calls.append(condition.labels.tolist())
        return self.inner.estimate(x_t, t, condition, s)


def guide(flow, weight, x):
    return guided(flow, ClassifierFree(weight), LABELS, x, T, T, None)


@pytest.mark.parametrize("weight", [0.0, torch.zeros(6)])
def test_no_guidance_is_the_condition_alone(weight):
    flow, x = Recorder(), noise(6, 2)
    assert torch.equal(guide(flow, weight, x).velocity, ring().estimate(x, T, LABELS).velocity)
    assert flow.calls == [[0] * 6]  # v_∅ was never asked for


def test_formula_in_one_batch():
    flow, x, w = Recorder(), noise(6, 2), 1.5
    v_y, v_null = ring().estimate(x, T, LABELS).velocity, ring().estimate(x, T, LABELS.null()).velocity
    estimate = guide(flow, w, x)
    assert torch.allclose(estimate.velocity, (1 + w) * v_y - w * v_null, atol=1e-12)
    assert flow.calls == [[0] * 6 + [-1] * 6]
    # Data is guided by the same rule: conversions are affine in the velocity.
    data_y, data_null = ring().estimate(x, T, LABELS).data, ring().estimate(x, T, LABELS.null()).data
    assert torch.allclose(estimate.data, (1 + w) * data_y - w * data_null, atol=1e-12)


def test_each_sample_has_its_own_weight():
    flow, x = Recorder(), noise(6, 2)
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0])
    together = guide(flow, weights, x).velocity
    assert flow.calls == [[0] * 6 + [-1] * 3]  # only the guided ones
    for i, weight in enumerate(weights):
        alone = guided(ring(), ClassifierFree(weight), LABELS.select(slice(i, i + 1)), x[i : i + 1], T, T, None)
        assert torch.allclose(together[i], alone.velocity[0], atol=1e-12)
    assert torch.equal(together[0], ring().estimate(x, T, LABELS).velocity[0])


@pytest.mark.parametrize("name", [name for name in SOLVERS if not isinstance(solver(name), Stochastic)])
def test_guidance_moves_away_from_the_exact_conditional(name):
    """With exact velocities there is no model error to repair: w > 0 narrows the distribution beyond the data."""
    z = noise(300, 2)
    condition = Condition(torch.zeros(300, dtype=torch.int64))
    x = {w: sample(ring(), z, solver(name), 50, condition, ClassifierFree(w)) for w in (0.0, 2.0)}
    members = ring().means[:2]
    nearest = {w: torch.cdist(x[w], members).min(1).values for w in x}
    assert torch.cdist(x[2.0], x[0.0]).diagonal().mean() > 0.1
    assert nearest[0.0].square().mean() == pytest.approx(2 * 0.2**2, rel=0.2)
    assert abs(nearest[2.0].square().mean() / (2 * 0.2**2) - 1) > 0.3


@pytest.mark.parametrize("weight", [-0.1, float("nan"), torch.tensor([1.0, -1.0])])
def test_impossible_weight(weight):
    with pytest.raises(InputError, match="w must be finite and ≥ 0"):
        ClassifierFree(weight)


def test_interval_of_all_times_is_none_at_all():
    condition, z = Condition(torch.zeros(20, dtype=torch.int64)), noise(20, 2)
    plain, all_times = (
        sample(ring(), z, solver("heun"), 6, condition, guidance)
        for guidance in (ClassifierFree(1.5), ClassifierFree(1.5, (0.0, 1.0)))
    )
    assert torch.equal(plain, all_times)


def test_outside_the_interval_nothing_is_guided():
    condition, z = Condition(torch.zeros(20, dtype=torch.int64)), noise(20, 2)
    outside = sample(ring(), z, solver("euler"), 10, condition, ClassifierFree(1.5, (0.42, 0.48)))
    assert torch.equal(outside, sample(ring(), z, solver("euler"), 10, condition))


def test_null_is_evaluated_within_the_interval_only():
    flow = Recorder()
    sample(flow, noise(6, 2), solver("euler"), 10, LABELS, ClassifierFree(1.0, (0.25, 0.75)))
    assert [len(call) for call in flow.calls] == [6, 6, 6, 12, 12, 12, 12, 12, 6, 6]  # t = 1, 0.9, …, 0.1


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_impossible_interval(interval):
    with pytest.raises(InputError, match="0 ≤ low ≤ high ≤ 1"):
        ClassifierFree(1.0, interval)
