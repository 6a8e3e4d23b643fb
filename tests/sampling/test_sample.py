import gc
import itertools

import pytest
import torch

from rectiflow.flow.exact import GaussianFlow
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.guidance import ClassifierFree
from rectiflow.sampling.sample import sample, trajectory
from rectiflow.sampling.solvers import solver
from tests.flow.oracles import noise, ring

FLOW = GaussianFlow(torch.zeros(2), 0.5)


def test_states_as_they_come():
    z = noise(3, 2)
    states = list(trajectory(FLOW, z, time_grid(5), solver("euler")))
    assert [state.step for state in states] == [0, 1, 2, 3, 4, 5]
    assert [state.t for state in states] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert torch.equal(states[0].x_t, z)
    assert states[0].estimate is None
    for before, after in itertools.pairwise(states):
        assert torch.allclose(after.x_t, before.x_t - 0.2 * after.estimate.velocity)
        assert float(after.estimate.t) == pytest.approx(before.t)
    assert torch.equal(sample(FLOW, z, solver("euler"), 5), states[-1].x_t)


def test_a_march_of_a_million_steps_begins_at_once():
    """And takes no memory for the steps that it has not come to."""
    states = trajectory(FLOW, noise(3, 2), time_grid(10**6), solver("euler"))
    before = sum(type(each) is torch.Tensor for each in gc.get_objects())
    assert [next(states).step for _ in range(3)] == [0, 1, 2]
    assert sum(type(each) is torch.Tensor for each in gc.get_objects()) < before + 1000


def test_a_start_in_the_middle_goes_on_where_the_whole_went():
    z = noise(3, 2)
    whole = list(trajectory(FLOW, z, time_grid(10), solver("heun")))
    *_, last = trajectory(FLOW, whole[6].x_t, time_grid(4, start=0.4), solver("heun"))
    assert torch.allclose(last.x_t, whole[-1].x_t, atol=1e-12)


def test_a_hook_takes_the_place_of_the_state():
    z, seen = noise(3, 2), []

    def pin(state):
        seen.append(state.step)
        return torch.cat([torch.zeros_like(state.x_t[:, :1]), state.x_t[:, 1:]], dim=1)

    *_, last = trajectory(FLOW, z, time_grid(5), solver("ab2"), hook=pin)
    assert seen == [1, 2, 3, 4, 5]
    assert torch.equal(last.x_t[:, 0], torch.zeros(3, dtype=torch.float64))


def test_guidance_without_a_condition_is_none():
    z = noise(3, 2)
    plain = sample(ring(), z, solver("euler"), 5)
    assert torch.equal(sample(ring(), z, solver("euler"), 5, guidance=ClassifierFree(2.0)), plain)


def test_guidance_state_is_committed_once_per_step():
    from dataclasses import replace

    from rectiflow.base.condition import Condition
    from rectiflow.sampling.guidance import Guidance

    class Counting(Guidance):
        def init(self, shape):
            assert tuple(shape) == (3, 2)
            return 0

        def branches(self, condition, count, t):
            return []

        def __call__(self, estimates, x_t, t, s, state):
            return replace(estimates[0])

        def commit(self, estimate, state):
            commits.append((state, float(estimate.t)))
            return state + 1

    commits = []
    condition = Condition(torch.zeros(3, dtype=torch.int64))
    sample(ring(), noise(3, 2), solver("heun"), 3, condition, Counting())
    assert commits == [(0, pytest.approx(1)), (1, pytest.approx(2 / 3)), (2, pytest.approx(1 / 3))]
