"""At which times a solver stops between noise and data."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rectiflow.base.errors import InputError, unknown
from rectiflow.flow.schedule import Rectified, Schedule
from rectiflow.flow.times import shift

GRIDS = ("uniform", "karras", "log-snr")
_KARRAS_SIGMA = (80.0, 0.002)
_KARRAS_RHO = 7


def time_grid(
    steps: int,
    start: float | None = None,
    end: float | None = None,
    shift_by: float = 1.0,
    kind: str | Sequence[float] = "uniform",
    schedule: Schedule | None = None,
) -> Tensor:
    """N+1 times that bound N intervals, falling from `start` to `end`; float64, both ends included exactly.

    Args:
        steps: N ≥ 1.
        start: t to begin at; the schedule's t_max if left out.
        end: t to finish at; the schedule's t_min if left out.
        shift_by: time shift s of the uniform grid, evenly spaced before the shift; 1 is none. Others have none.
        kind: "uniform", "karras" or "log-snr", or the times themselves, as numbers or as in "1,0.8,0.5,0"; N is then
            one less than there are. What lies outside the schedule's range is moved to its end.
        schedule: the path; rectified if left out.

    Raises:
        InputError: no such grid, fewer than one step, ends out of order, or times that do not fall.
    """
    schedule = schedule or Rectified()
    if steps < 1:
        raise InputError(f"steps must be at least 1, received {steps}.")
    start = schedule.t_max if start is None else start
    end = schedule.t_min if end is None else end
    if not schedule.t_min <= end < start <= schedule.t_max:
        expected = f"{schedule.t_min:g} ≤ end < start ≤ {schedule.t_max:g}"
        raise InputError(f"expected {expected}, received start={start}, end={end}.")
    match kind:
        case "uniform":
            return _uniform(steps, start, end, shift_by)
        case "karras":
            return _karras(schedule, steps, start, end)
        case "log-snr":
            return log_snr_grid(schedule, steps, start, end)
    return _own(schedule, _times(kind), start, end)


def intervals(grid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The ends of each of the N intervals between N+1 times, one after the other."""
    # Iterating over a tensor makes all its elements first: of a million, for seconds in which no other thread can run.
    return pairwise(grid[step] for step in range(len(grid)))


def log_snr_grid(schedule: Schedule, steps: int, start: float, end: float, clip: float = 8.0) -> Tensor:
    """Evenly spaced log-SNR λ from end to end; the first and the last time are set to the ends themselves.

    An end at which |λ| is infinite, or more than twice `clip`, counts as |λ| = `clip`.
    """
    log_snr = schedule.log_snr(torch.tensor([start, end], dtype=torch.float64))
    low, high = torch.where(log_snr.abs() > 2 * clip, log_snr.clamp(-clip, clip), log_snr).tolist()
    return _between(schedule.time_of(torch.linspace(low, high, steps + 1, dtype=torch.float64)), start, end)


def _uniform(steps: int, start: float, end: float, shift_by: float) -> Tensor:
    if shift_by == 1:
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)
    # Even spacing lies in the unshifted time, so the ends are mapped back there first.
    ends = shift(torch.tensor([start, end], dtype=torch.float64), 1 / shift_by)
    grid = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    return _between(shift(grid, shift_by), start, end)


def _karras(schedule: Schedule, steps: int, start: float, end: float) -> Tensor:
    """σ = β/α evenly spaced in σ^(1/7) from 80 to 0.002 (Karras et al. 2022), and one step more to less noise."""
    at = schedule.at(torch.tensor([start, end], dtype=torch.float64))
    first, last = (at.beta / at.alpha).tolist()
    high, low = min(first, _KARRAS_SIGMA[0]), max(last, _KARRAS_SIGMA[1])
    count = steps if last < low else steps + 1
    root = torch.linspace(high ** (1 / _KARRAS_RHO), low ** (1 / _KARRAS_RHO), count, dtype=torch.float64)
    times = schedule.time_of(-2 * _KARRAS_RHO * root.log())
    tail = torch.full((steps + 1 - count,), end, dtype=torch.float64)
    return _between(torch.cat([times, tail]), start, end)


def _times(kind: str | Sequence[float]) -> list[float]:
    if not isinstance(kind, str):
        return [float(time) for time in kind]
    try:
        return [float(part) for part in kind.split(",")]
    except ValueError:
        raise unknown("grid", kind, [*GRIDS, "times such as 1,0.8,0.5,0"]) from None


def _own(schedule: Schedule, times: Sequence[float], start: float, end: float) -> Tensor:
    if len(times) < 2 or not all(math.isfinite(time) for time in times):
        raise InputError(f"a grid of times needs two or more numbers such as 1,0.8,0.5,0; received {list(times)}.")
    grid = torch.tensor(times, dtype=torch.float64)
    inside = grid.clamp(schedule.t_min, schedule.t_max)
    if float(inside[0]) != start or float(inside[-1]) != end or not 0 <= float(grid.min()) <= float(grid.max()) <= 1:
        raise InputError(f"a grid of times must begin at {start:g} and end at {end:g}; received {list(times)}.")
    return _between(inside, start, end)


def _between(grid: Tensor, start: float, end: float) -> Tensor:
    grid[0], grid[-1] = start, end
    if not bool((grid.diff() < 0).all()):
        raise InputError(
            f"the times of a grid must fall at each step, received {[round(time, 6) for time in grid.tolist()]}."
        )
    return grid
