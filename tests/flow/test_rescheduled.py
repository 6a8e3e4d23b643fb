"""A flow on another path: the exact field of that path, equal steps at equal log-SNRs, and what becomes of the ends."""

import itertools

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import Flow
from rectiflow.flow.rescheduled import OnSchedule
from rectiflow.flow.schedule import VE, Rectified, Trig, VPLinear
from rectiflow.sampling.sample import trajectory
from rectiflow.sampling.solvers import solver
from tests.flow.oracles import PATHS, noise, ring


@pytest.mark.parametrize(("old", "new"), itertools.permutations(PATHS, 2))
def test_the_field_is_the_exact_one_of_the_new_path(old, new):
    """The mixture's closed form on the new path, from its closed form on the old one."""
    moved, direct = OnSchedule(ring(PATHS[old]), PATHS[new]), ring(PATHS[new])
    for log_snr in (-3.0, 0.0, 3.0):
        t = PATHS[new].time_of(torch.tensor(log_snr, dtype=torch.float64))
        at = PATHS[new].at(t)
        x = (at.alpha**2 + at.beta**2).sqrt() * noise(20, 2)
        assert torch.allclose(moved(x, t).data, direct(x, t).data, atol=1e-8)
        assert torch.allclose(moved(x, t).velocity, direct(x, t).velocity, rtol=1e-7, atol=1e-7)


def test_trajectories_are_the_old_ones_but_for_their_scale():
    """x̄_r = c·x_t at equal log-SNR, along fine solutions of either."""
    log_snrs = torch.linspace(-6, 6, 401, dtype=torch.float64)
    start, ends = noise(30, 2), []
    for flow in (ring(), OnSchedule(ring(), Trig())):
        grid = flow.schedule.time_of(log_snrs)
        size = lambda t, path=flow.schedule: (path.at(t).alpha ** 2 + path.at(t).beta ** 2).sqrt()  # noqa: E731
        *_, last = trajectory(flow, size(grid[0]) * start, grid, solver("rk4"))
        ends.append(last.x_t / size(grid[-1]))
    assert torch.allclose(*ends, atol=1e-5)


@pytest.mark.parametrize("path", [Trig(), VPLinear(), VE()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("method", ["ddpm:eta=0", "exp-ab2"])
def test_euler_on_the_linear_path_is_ddim_and_the_first_order_of_dpm(path, method):
    """At the same log-SNRs, whatever path these visit; of exp-ab2 only the first step is of first order."""
    log_snrs = torch.linspace(-7, 7, 13, dtype=torch.float64)[: None if method.startswith("ddpm") else 2]
    z = noise(30, 2)
    grid = Rectified().time_of(log_snrs)
    at = Rectified().at(grid[0])
    start = z / (at.alpha**2 + at.beta**2).sqrt()
    *_, linear = trajectory(ring(), start * (at.alpha**2 + at.beta**2).sqrt(), grid, solver("euler"))
    times = path.time_of(log_snrs)
    here, there = path.at(times[0]), path.at(times[-1])
    moved = OnSchedule(ring(), path)
    *_, other = trajectory(moved, start * (here.alpha**2 + here.beta**2).sqrt(), times, solver(method))
    end = Rectified().at(grid[-1])
    ratio = ((end.alpha**2 + end.beta**2) / (there.alpha**2 + there.beta**2)).sqrt()
    assert torch.allclose(linear.x_t, other.x_t * ratio, atol=1e-6)


def test_beyond_the_range_of_the_old_path_its_end_is_taken():
    """A path of noise from 0.01 to 10 has nothing to say beyond, and its end is finite."""
    moved = OnSchedule(GaussianFlow(torch.zeros(3), 0.5, VE(0.01, 10.0)), Rectified())
    for t in (0.0, 1.0):
        estimate = moved(noise(4, 3), torch.tensor(t, dtype=torch.float64))
        assert bool(torch.isfinite(estimate.velocity).all())


def test_what_is_no_instantaneous_estimate_is_refused():
    flow = Flow(torch.nn.Identity(), one_step=True)
    flow.network = type("Net", (torch.nn.Module,), {"forward": lambda self, x, t, c=None: x})()
    with pytest.raises(InputError, match="average velocity"):
        OnSchedule(flow, Trig())(noise(2, 2), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(InputError, match="leave out s"):
        OnSchedule(ring(), Trig())(noise(2, 2), torch.tensor(0.5), s=0.0)
