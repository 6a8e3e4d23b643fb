import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.flow.schedule import VE, Rectified, Trig, VPLinear
from rectiflow.flow.times import shift
from rectiflow.sampling.grids import GRIDS, time_grid
from tests.flow.oracles import PATHS


def test_n_steps_are_n_intervals():
    grid = time_grid(50)
    assert len(grid) == 51
    assert (float(grid[0]), float(grid[-1])) == (1.0, 0.0)
    assert torch.allclose(grid.diff(), torch.full((50,), -0.02, dtype=torch.float64))


def test_shifted_grid():
    assert torch.allclose(time_grid(10, shift_by=3.0), shift(time_grid(10), 3.0))
    inner = time_grid(10, start=0.6, end=0.1, shift_by=3.0)
    assert (float(inner[0]), float(inner[-1])) == (0.6, 0.1)
    unshifted = shift(inner, 1 / 3.0)
    assert torch.allclose(unshifted.diff(), unshifted.diff()[:1].expand(10))


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_every_grid_falls_from_end_to_end(kind, steps, path):
    path = PATHS[path]
    for start, end in ((None, None), (0.6, 0.1)):
        grid = time_grid(steps, start, end, kind=kind, schedule=path)
        assert len(grid) == steps + 1
        assert (float(grid[0]), float(grid[-1])) == (start or path.t_max, end or path.t_min)
        assert (grid.diff() < 0).all()


@pytest.mark.parametrize("path", [Rectified(), Trig()])
def test_even_log_snr(path):
    grid = time_grid(16, kind="log-snr", schedule=path)
    assert path.log_snr(grid[1:-1]).tolist() == pytest.approx([float(i - 7) for i in range(15)], abs=1e-9)


@pytest.mark.parametrize("path", [Rectified(), VPLinear(), VE()])
def test_even_log_snr_between_finite_ends(path):
    steps = path.log_snr(time_grid(16, 0.95, 0.05, kind="log-snr", schedule=path)).diff()
    assert torch.allclose(steps, steps[:1].expand(16))


def test_even_log_snr_is_even_time_where_noise_is_geometric():
    assert torch.allclose(time_grid(10, kind="log-snr", schedule=VE()), time_grid(10, schedule=VE()), atol=1e-12)


def test_karras():
    """σ_i = (80^(1/7) + i/(N−1)·(0.002^(1/7) − 80^(1/7)))^7, then 0; the first on the rectified path is pure noise."""
    sigma = [(80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(9)]
    grid = time_grid(9, kind="karras")
    assert grid.tolist() == pytest.approx([1.0, *[s / (1 + s) for s in sigma[1:]], 0.0])
    # Where σ_min is the end itself, there is no further step to take.
    exploding = time_grid(8, kind="karras", schedule=VE())
    assert VE().at(exploding).beta.tolist() == pytest.approx(sigma)


@pytest.mark.parametrize("times", ["1,0.8,0.5,0", "1, .8, .5, 0", (1.0, 0.8, 0.5, 0.0), [1, 0.8, 0.5, 0]])
def test_own_times(times):
    assert time_grid(50, kind=times).tolist() == [1, 0.8, 0.5, 0]
    assert time_grid(50, kind=times, schedule=VPLinear()).tolist() == [1, 0.8, 0.5, 1e-5]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("karas", "unknown grid 'karas'. Did you mean 'karras'"),
        ("logsnr", "Did you mean 'log-snr'"),
        ("1,x,0", "times such as 1,0.8,0.5,0"),
        ("0.5", "two or more"),
        ("1,nan,0", "two or more"),
        ("1,0.2,0.5,0", "must fall"),
        ("1,1,0", "must fall"),
        ("2,0.5,0", "begin at 1"),
        ("0.9,0.5,0", "begin at 1 and end at 0"),
        ("1,0.5", "begin at 1 and end at 0"),
    ],
)
def test_impossible_kinds(kind, words):
    with pytest.raises(InputError, match=words):
        time_grid(5, kind=kind)


@pytest.mark.parametrize(("steps", "start", "end"), [(0, 1.0, 0.0), (5, 0.2, 0.4), (5, 1.5, 0.0)])
def test_impossible_grid(steps, start, end):
    with pytest.raises(InputError):
        time_grid(steps, start, end)
