"""A run folder: whose it is, what run it holds, and that one job at a time trains there."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rectiflow.base.config import differences, merge, nested, read_yaml, write_yaml
from rectiflow.base.errors import InputError
from rectiflow.base.files import recover_folder, unwritable, write_text
from rectiflow.base.ranks import first_then_others, from_first
from rectiflow.data.images import ImageSet
from rectiflow.data.sets import is_index, keep_index
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.post_hoc import FOLDER as AVERAGES

CONFIG_NAME = "run.yaml"
INDEX_NAME = "inventory"
SOURCE_INDEX_NAME = "source-inventory"
LOCK_NAME = ".lock"
# Settings of how a run is carried out, watched and kept; what it comes to is the same, up to rounding.
HOW = (
    *("parallel", "threads", "accumulate", "activation_checkpointing", "compile", "data.workers"),
    *("watch", "every", "keep", "keep_best", "save_aside"),
)
_STAGES = ("latent.train", "latent.pictures")  # with settings of the same names
_HALF = re.compile(r"\..+\.\d+\.tmp")  # a file that `write_aside` has not finished


def read_run(folder: Path) -> RunConfig | AutoencoderRunConfig:
    """The configuration of the run in `folder`.

    Raises:
        InputError: there is no run, or its `run.yaml` is not valid.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise InputError(f"{folder} is not a run: it has no {CONFIG_NAME}.")
    values = read_yaml(path)
    if values.get("objective") == "autoencoder":
        return AutoencoderRunConfig.parse(values, str(path))
    return RunConfig.parse(values, str(path))


def finished(config: TrainingConfig, folder: Path) -> bool:
    """Whether all steps of a run are done and its model is there: that of the last step, not of one before."""
    saved = Checkpoints(folder / "checkpoints", config.keep).steps()
    return bool(saved) and saved[-1] == config.steps == _step_of_model(folder / "model")


def _step_of_model(model: Path) -> int | None:
    try:
        step = json.loads((model / "config.json").read_text(encoding="utf-8"))["training"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def write_down(config: TrainingConfig, data: ImageSet, folder: Path) -> None:
    """Write a run's settings and which pictures it has.

    Raises:
        InputError: the disk is full or read-only.
    """
    keep_index(data, folder / INDEX_NAME)
    write_text(folder / CONFIG_NAME, write_yaml(config.model_dump(mode="json")))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder while training; the operating system lets go of it however the process ends.

    Of a job's processes the first one holds it for all.

    Raises:
        InputError: another job trains there, or the folder cannot be made.
    """
    lock = None
    with first_then_others() as mine:
        if mine:
            lock = _acquired(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
            if not (folder / CONFIG_NAME).exists():  # refused before it began: leave nothing behind
                (folder / LOCK_NAME).unlink(missing_ok=True)
                for name in (INDEX_NAME, SOURCE_INDEX_NAME):
                    if is_index(folder / name):
                        shutil.rmtree(folder / name)
                with suppress(OSError):
                    folder.rmdir()


def _acquired(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=1)  # `rectiflow info` holds it for an instant
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is training in {folder}; wait for it, or choose another --run.") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    _tidy(folder)
    return lock


def _tidy(folder: Path) -> None:
    """Put right what a process left that was killed as it wrote: what is whole stays, halves go."""
    with suppress(OSError):  # where nothing can be changed, what lies there harms nobody
        for name in ("model", INDEX_NAME, SOURCE_INDEX_NAME):
            recover_folder(folder / name)
            shutil.rmtree(folder / f"{name}.tmp", ignore_errors=True)
        for place in (folder, folder / "samples", folder / AVERAGES):
            for path in place.glob(".*.tmp"):
                if _HALF.fullmatch(path.name):
                    path.unlink()


def former_run(config: TrainingConfig, folder: Path) -> TrainingConfig | None:
    """The run that `folder` already holds, if it is this one, carried out as asked now; None if it holds nothing."""
    if not (folder / CONFIG_NAME).exists():
        if folder.exists() and (not folder.is_dir() or any(not _is_remnant(path) for path in folder.iterdir())):
            raise InputError(f"{folder} is not empty and not a run; choose another --run.")
        return None
    former = read_run(folder)
    if former.recipe != config.recipe:
        raise InputError(
            f"{folder} is a run of recipe {former.recipe}, not {config.recipe}; choose another --run, "
            f"or go on with it: rectiflow train --resume {folder}"
        )
    there, here = former.model_dump(mode="json"), config.model_dump(mode="json")
    asked, how = _comparable(here, there), _how(there, here)
    for name in how:
        asked = merge(asked, nested(name, _at(there, name)))
    if names := differences(asked, there):
        first = names[0]
        raise InputError(
            f"{folder} was begun with other settings ({', '.join(names)}; {first} is {_at(there, first)} there, "
            f"{_at(asked, first)} here); choose another --run, or go on with it as it is: "
            f"rectiflow train --resume {folder}"
        )
    for name in how:
        there = merge(there, nested(name, _at(here, name)))
    return type(former).parse(there, str(folder / CONFIG_NAME))


def _how(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Of a run and of each stage before it that both have: what may change."""
    stages = [name for name in _STAGES if all(isinstance(_at(values, name), dict) for values in (there, here))]
    return [*HOW, *(f"{stage}.{name}" for stage in stages for name in HOW)]


def _is_remnant(path: Path) -> bool:
    """Whether a run that was cut off before its first line left this: nothing of the user's is taken for it."""
    index = path.with_suffix("") if path.suffix == ".old" else path
    if index.name in (INDEX_NAME, SOURCE_INDEX_NAME) and is_index(path):
        return True
    half = _HALF.fullmatch(path.name) and path.name.startswith(f".{CONFIG_NAME}.")
    return bool(half) or path.name in (LOCK_NAME, f"{INDEX_NAME}.tmp", f"{SOURCE_INDEX_NAME}.tmp")


def _comparable(asked: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    # A choice left to the machine or to the data is no difference from what was then chosen.
    values = dict(asked)
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(there.get(name), dict):
            values[name] = _comparable(value, there[name])
        elif value in (None, "auto") and not isinstance(there.get(name), dict):  # null in place of settings is a choice
            values[name] = there.get(name)
    return values


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def agreed_former(config: TrainingConfig, folder: Path) -> TrainingConfig | None:
    """`former_run` as the first process of the job finds it."""
    former = None
    with first_then_others() as mine:
        if mine:
            former = former_run(config, folder)
    return from_first(former)
