"""What things cost by the clock and by the processor, and hooks that are there for a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

import torch

from rectiflow.plan.measured import Cost, Event

_AGAIN = 3
_FAR = 4.0  # times the median, beyond which a step was held up by something else


def now(device: torch.device | None = None) -> Cost:
    """The moment, when the device has done what was asked of it."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(wall=time.perf_counter(), cpu=time.process_time())


def cost_of(call: Callable[[], object], device: torch.device | None = None) -> Cost:
    """What a call costs."""
    began = now(device)
    call()
    return now(device) - began


def mean(costs: list[Cost]) -> Cost:
    """Of some that are alike; what is far above the median, the lower one of two, counts as a multiple of it."""
    bounds = {name: _FAR * median_low(getattr(cost, name) for cost in costs) for name in ("wall", "cpu")}
    return Cost(**{name: fmean(min(getattr(cost, name), most) for cost in costs) for name, most in bounds.items()})


def event(call: Callable[[], object], device: torch.device, enough: float) -> Event:
    """What a call costs, for the first time and again, which is done up to three times while all of it takes no longer
    than `enough` seconds; what took longer the first time is not done again."""
    first = cost_of(call, device)
    if first.wall > enough:
        return Event(first=first, again=first)
    again = [cost_of(call, device)]
    while len(again) < _AGAIN and first.wall + sum(cost.wall for cost in again) + again[-1].wall < enough:
        again.append(cost_of(call, device))
    return Event(first=first, again=sorted(again, key=lambda cost: cost.alone)[(len(again) - 1) // 2])


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[Any]:
    """Another value of an attribute for a while; gives the former one. For a process that does nothing else."""
    former = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield former
    finally:
        if former is None:
            delattr(owner, name)
        else:
            setattr(owner, name, former)
