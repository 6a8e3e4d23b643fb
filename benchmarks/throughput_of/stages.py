"""Where the time of a real run goes, by the real trainer on real recipes, and what it costs to watch and keep it.

Each run is `rectiflow.training.run.train`, up to one checkpoint; what the trainer calls is timed from outside, each
part without what it calls of the others. Then the same run is made without logging, averages and checkpoints, in turns
with the whole, and processor seconds are compared: they hold what is written aside, too.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from kept import Result
from rectiflow.data.loader import Loader
from rectiflow.data.sets import write_set
from rectiflow.recipes.registry import AnyRun, resolve
from rectiflow.training import run as training_run
from rectiflow.training.interrupt import Interrupt
from rectiflow.training.log import RunLog
from rectiflow.training.trainer import Trainer

KEPT_UP = ("logging", "averages", "checkpoints")
AIMS = {"data": 0.02, "kept_up": 0.03}
FIRST = "first batch"
PICTURES = 1000
SHORT = {"held_out": 0, "preview": 0, "first_preview": 0}


class Clock:
    """Seconds of each of several parts, each without what it calls of the others.

    The first call for data waits until the processes that decode have started, once in a run of any length, and is a
    part of its own. It takes nothing where they started before the loop, as precision was measured.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # seconds of parts within each part that is open

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted as part `name`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                part = FIRST if name == "data" and FIRST not in self.seconds else name
                self.seconds[part] = self.seconds.get(part, 0.0) + whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return counted


@contextmanager
def watched(trainer: Trainer, clock: Clock) -> Iterator[None]:
    """While a trainer trains, its parts are timed."""
    methods: list[tuple[str, Any, str]] = [
        ("forward", trainer.stage, "loss"),
        ("averages", trainer.ema, "update"),
        ("logging", trainer, "_tell_how_it_goes"),
        ("checkpoints", trainer, "save"),
        ("checkpoints", trainer.checkpoints, "wait"),
        ("backward", torch.Tensor, "backward"),
        ("optimiser", torch.nn.utils, "clip_grad_norm_"),
        ("data", Loader, "__call__"),
        *(("optimiser", each, "step") for group in trainer.stepper.turns.values() for each in group),
    ]
    with ExitStack() as stack:
        for part, owner, name in methods:
            # A function in a class is given its object; a bound method has it.
            stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        yield


def config_of(recipe: str, pictures: Path, whole: bool, steps: int | None) -> AnyRun:
    """A recipe up to its first checkpoint, with all that it keeps up or with nothing of it."""
    settings = [f"data.dir={pictures}"] if recipe == "folder" else []
    config = resolve(recipe, settings=settings)
    count = steps or config.every.save
    every = config.every.model_copy(update={**SHORT, **({"save": count} if whole else {"save": 0, "log": count})})
    return config.model_copy(update={"steps": count, "every": every, "watch": config.watch if whole else ()})


def trained(config: AnyRun, folder: Path, whole: bool) -> dict[str, Any]:
    """Train; seconds of the loop, of the processor in it, and of its parts."""
    found: dict[str, Any] = {}
    fit = Trainer.fit

    def timed_fit(trainer: Trainer, log: RunLog, interrupt: Interrupt) -> bool:
        clock = Clock()
        idle = nullcontext() if whole else patch.object(trainer.ema, "update", lambda module, step: None)
        with idle, watched(trainer, clock):
            wall, cpu, waited = time.perf_counter(), time.process_time(), trainer.stage.waited
            done = fit(trainer, log, interrupt)
            found.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
            found.update(waited=trainer.stage.waited - waited, steps=trainer.step, parts=clock.seconds)
        return done

    with patch.object(Trainer, "fit", timed_fit):
        training_run.train(config, folder, Console(quiet=True))
    return found


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Of the loop's time, by part; what is in none of them is "between"."""
    parts = {name: seconds / found["wall"] for name, seconds in found["parts"].items()}
    return {**parts, "between": 1 - sum(parts.values())}


def summed(runs: dict[str, list[dict[str, Any]]]) -> Result:
    """Of the runs with all and without, of a recipe."""
    whole = runs["whole"]
    names = list(dict.fromkeys(name for found in whole for name in shares(found)))
    parts = {name: statistics.median(shares(found).get(name, 0.0) for found in whole) for name in names}
    steps = whole[0]["steps"]
    cpu = {name: statistics.median(found["cpu"] for found in each) for name, each in runs.items()}
    return {
        "steps": steps,
        "first_batch_seconds": round(statistics.median(found["parts"].get(FIRST, 0.0) for found in whole), 2),
        "step_seconds": round(statistics.median(found["wall"] for found in whole) / steps, 4),
        "shares": {name: round(share, 4) for name, share in parts.items()},
        "data": round(parts.get("data", 0.0), 4),
        "kept_up": round(sum(parts.get(name, 0.0) for name in KEPT_UP), 4),
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in cpu.items()},
        "kept_up_by_difference": round(1 - cpu["bare"] / cpu["whole"], 4),
        "each": {name: [round(found["cpu"], 2) for found in each] for name, each in runs.items()},
    }


def profile(rounds: int, steps: int | None = None) -> Result:
    """Shares of a step's time, and the difference that logging, averages and checkpoints make.

    Args:
        rounds: runs of each kind, of each recipe.
        steps: of a run; None is up to the recipe's first checkpoint.
    """
    result: Result = {"settings": {"rounds": rounds, "steps": steps, "pictures": PICTURES}, "aims": AIMS}
    recipes: dict[str, Result] = {}
    with TemporaryDirectory() as name:
        home = Path(name)
        write_set("digit-scenes", home / "pictures", PICTURES)
        for recipe in ("digits", "folder"):
            runs: dict[str, list[dict[str, Any]]] = {"whole": [], "bare": []}
            for number in range(rounds):
                for kind in ("whole", "bare") if number % 2 == 0 else ("bare", "whole"):
                    config = config_of(recipe, home / "pictures", kind == "whole", steps)
                    runs[kind].append(trained(config, home / f"{recipe}-{number}-{kind}", kind == "whole"))
            recipes[recipe] = summed(runs)
            print(recipe, recipes[recipe], flush=True)
    return {**result, "recipes": recipes}
