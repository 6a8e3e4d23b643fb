"""A stage as a rehearsal tells of it, with round numbers."""

import pytest

from rectiflow.plan.measured import Cost, Event, Rehearsed, Window
from rectiflow.recipes.registry import resolve


@pytest.fixture
def config():
    """100 steps of 64 samples, with everything that is done between steps."""
    every = "every={log: 10, held_out: 30, preview: 40, first_preview: 4, save: 50, average: 25}"
    return resolve("digits", settings=["steps=100", "batch=64", every, "keep=1", "ema={kind: power}"])


@pytest.fixture
def stage():
    """What a rehearsal of a stage of a given batch might have found: a step of 0.01 s a sample, 1 MB a sample."""

    def made(batch: int, **changes: object) -> Rehearsed:
        each = Cost(wall=0.01 * batch, cpu=0.02 * batch)
        return Rehearsed(
            **{
                "name": "flow",
                "batch": batch,
                "steps": 100,
                "precision": "float32",
                "parameters": 1000,
                "averages": 2,
                "start": Cost(wall=7),
                "warm": Cost(wall=2),
                "windows": (
                    Window(kind="a", start=0, count=75, taken=9, mean=each, flops=1e9 * batch),
                    Window(kind="b", start=75, count=25, taken=9, mean=each * 3, flops=3e9 * batch),
                ),
                "held_out": Event(first=Cost(wall=5), again=Cost(wall=1)),
                "preview": Event(first=Cost(wall=3), again=Cost(wall=2), bytes=1000),
                "save": Event(first=Cost(wall=0.5), again=Cost(wall=0.5)),
                "last_save": Cost(wall=4),
                "average": Event(first=Cost(wall=0.25), again=Cost(wall=0.25), bytes=300),
                "checkpoint": 5000,
                "model": 700,
                "log": 10,
                "steps_peak": 10**8 + 10**6 * batch,
                "peak": 2 * 10**8,
                **changes,
            }
        )

    return made
