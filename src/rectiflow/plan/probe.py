"""Rehearsals of a run, each in a process of its own: two with small batches, then one as the run is."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.plan.line import Line
from rectiflow.plan.measured import Asked, Rehearsal
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig

Rehearse = Callable[[TrainingConfig, bool], Rehearsal]
_PARTS = (8, 4)  # of a batch, in the small rehearsals
SMALLEST = max(_PARTS)
_LONGEST = 10.0  # seconds of a step, beyond which the run is rehearsed with a smaller batch
_SHARE = 0.8  # of the memory there is, that a rehearsal may be expected to take


class Probed(Config):
    """What rehearsals of one run found.

    Args:
        small: with parts of the batch, without what comes between steps.
        whole: as the run is, unless that took too long or too much memory: then with a smaller batch.
    """

    small: tuple[Rehearsal, ...]
    whole: Rehearsal


def probe(config: TrainingConfig, available: int, seconds: float, rehearse: Rehearse | None = None) -> Probed:
    """Rehearse a run.

    Args:
        config: the run.
        available: bytes that it may take.
        seconds: that the steps of a phase, or an event, may take about.
        rehearse: what rehearses a run (its settings, whether with events); a process of its
            own if left out.

    Raises:
        InputError: what the run would refuse; or there is not enough memory even for a small batch.
    """
    run = rehearse or (lambda run, events: in_a_child(run, events, seconds))
    eager = {"compile": False}
    small = [run(_with_batches(config, partial(_part, part), eager), False) for part in _PARTS]
    whole = run(_with_batches(config, _Fitting(small, available), {}), True)
    return Probed(small=tuple(small), whole=whole)


def _part(part: int, batch: int) -> int:
    """1/part of a batch; 1 and 2 of the smallest, so that two are never alike."""
    return max(max(_PARTS) // part, batch // part)


class _Fitting:
    """The batch of each stage, in their order, that can be rehearsed."""

    def __init__(self, small: list[Rehearsal], available: int) -> None:
        self.stages = zip(*(rehearsal.stages for rehearsal in small), strict=True)
        self.available = available

    def __call__(self, batch: int) -> int:
        stages = next(self.stages)
        steps = Line.through([(stage.batch, stage.step.alone) for stage in stages])
        memory = Line.through([(stage.batch, stage.steps_peak) for stage in stages])
        fits = min(steps.where(_LONGEST), memory.where(_SHARE * self.available))
        return int(min(batch, max(stages[-1].batch, fits)))


def training_stages(config: TrainingConfig) -> list[TrainingConfig]:
    """The settings of each training stage that a run has, in their order."""
    latent = config.latent if isinstance(config, RunConfig) else None
    if latent is None or latent.autoencoder:
        return [config]
    return [*([] if latent.pictures is None else [latent.pictures]), latent.train, config]


def _with_batches(config: TrainingConfig, batch: Callable[[int], int], others: Mapping[str, object]) -> Any:
    """The same run with other batches, told to `batch` in the order of the stages, and other settings besides."""

    def changed(stage: TrainingConfig) -> dict[str, object]:
        size = batch(stage.batch)
        return {**others, "batch": size, "accumulate": min(stage.accumulate, size)}

    latent = config.latent if isinstance(config, RunConfig) else None
    update: dict[str, object] = {}
    if latent is not None and not latent.autoencoder:
        first = None if latent.pictures is None else latent.pictures.model_copy(update=changed(latent.pictures))
        train = latent.train.model_copy(update=changed(latent.train))
        update = {"latent": latent.model_copy(update={"pictures": first, "train": train})}
    return config.model_copy(update={**update, **changed(config)})


def private(config: TrainingConfig) -> TrainingConfig:
    """The same run, which neither reads nor writes what other runs share, and tells nobody of itself."""
    update: dict[str, object] = {"watch": tuple(sink for sink in config.watch if sink != "wandb")}
    if isinstance(config, RunConfig) and config.latent is not None:
        cache = config.latent.cache.model_copy(update={"dir": ""})
        update["latent"] = config.latent.model_copy(update={"cache": cache})
    if isinstance(config, RunConfig) and config.text is not None:
        update["text"] = config.text.model_copy(update={"cache": ""})
    return config.model_copy(update=update)


def in_a_child(config: TrainingConfig, events: bool, seconds: float) -> Rehearsal:
    """Rehearse a run in a process of its own and a folder that is removed, however this process ends.

    Raises:
        InputError: what the run would refuse; or the process died.
    """
    with _leaving_on_sigterm(), TemporaryDirectory(prefix="rectiflow-plan-") as name:
        folder = Path(name)
        asked = Asked(
            config=private(config).model_dump(mode="json"),
            folder=name,
            events=events,
            seconds=seconds,
            began=time.time(),
        )
        there, to = folder / "asked.json", folder / "found.json"
        there.write_text(asked.model_dump_json(), encoding="utf-8")
        own = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "TRITON_CACHE_DIR": str(folder / "triton")}
        status, told = _run([sys.executable, "-m", "rectiflow.plan.child", str(there), str(to)], own)
        ended = time.time()
        found: dict[str, Any] = {"error": _death(status, told, config)}
        if to.is_file():
            found = json.loads(to.read_text(encoding="utf-8"))
    if "error" in found:
        raise InputError(found["error"])
    finished = float(found.pop("finished"))
    rehearsal = Rehearsal.model_validate(found)
    end = rehearsal.end.model_copy(update={"wall": rehearsal.end.wall + max(0.0, ended - finished)})
    return rehearsal.model_copy(update={"end": end})


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The status of a process that ends with this one, and what it said on stderr. Nothing that it started is left."""
    theirs, ours = os.pipe()  # as long as `ours` is open, this process lives
    try:
        with subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, with its workers
        ) as child:
            try:
                _, told = child.communicate()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        return child.returncode, told
    finally:
        os.close(theirs)
        os.close(ours)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program by an exception, so that what has to be cleared away is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would stop the clearing away
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _death(status: int, told: str, config: TrainingConfig) -> str:
    if status == -9:
        return (
            f"the rehearsal was killed, as the system does when memory is full, at a batch of {config.batch}; try "
            "fewer samples (--set batch=…) or more parts (--set accumulate=…)."
        )
    last = ["", *told.strip().splitlines()][-1]
    return f"the rehearsal failed with status {status}: {last}"
