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
from rectiflow.base.files import aside_of, former_of, recover_folder, unwritable, write_text
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
    *("latent.cache.batch", "latent.cache.shard"),
    *("watch", "every", "preview", "keep", "keep_best", "save_aside"),
)
# Folders of the stages before a flow in latents, each a run, and where their settings are, which have the same names.
STAGES = {"autoencoder": "latent.train", "autoencoder-of-pictures": "latent.pictures"}
# Where None or "auto" leaves the choice to the data or to the machine; elsewhere they are a choice.
_OPEN = ("precision", "device", "data.size", "data.colour")  # and the network's own
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
    return bool(saved) and saved[-1] == config.steps == model_step(folder / "model")


def begun(config: TrainingConfig, folder: Path) -> bool:
    """Whether a run has a checkpoint that it goes on from."""
    return bool(Checkpoints(folder / "checkpoints", config.keep).steps())


def owner(folder: Path) -> tuple[Path, str]:
    """The run that `folder` is a stage of, and what the stage's settings begin with there; else itself and nothing."""
    if folder.name in STAGES and (folder.parent / CONFIG_NAME).is_file():
        return folder.parent, f"{STAGES[folder.name]}."
    return folder, ""


def model_step(model: Path) -> int | None:
    """After how many steps a model was saved; None if there is none, or none that says so."""
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
    write_settings(config, folder)


def write_settings(config: TrainingConfig, folder: Path) -> None:
    """Write a run's settings.

    Raises:
        InputError: the disk is full or read-only.
    """
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
            try:
                if not (folder / CONFIG_NAME).exists():  # refused before it began: leave nothing behind
                    _clear(folder)
            finally:
                lock.release()


def _clear(folder: Path) -> None:
    """Remove what a run left that never began. While the folder is held: afterwards it may be another job's."""
    for name in (INDEX_NAME, SOURCE_INDEX_NAME):
        if is_index(folder / name):
            shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):  # not empty, or a system on which an open file stays
        (folder / LOCK_NAME).unlink(missing_ok=True)
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
            shutil.rmtree(aside_of(folder / name), ignore_errors=True)
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
    asked, how = _comparable(here, there), [*_how(there, here), *_moved(there, here, folder)]
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
    """Of a run and of each stage before it what may change, as far as both have it."""
    names = [*HOW, *(f"{stage}.{name}" for stage in STAGES.values() for name in HOW)]
    return [name for name in names if _has(there, name) and _has(here, name)]


def _moved(there: dict[str, Any], here: dict[str, Any], folder: Path) -> list[str]:
    """What names a place in the run that `folder` is a stage of, and so changes with the place of that run."""
    before = Path(here.get("start_from", ""))
    mine = before.name in STAGES and before.parent == folder.absolute().parent
    return ["start_from"] if mine and Path(there.get("start_from", "")).name == before.name else []


def _is_remnant(path: Path) -> bool:
    """Whether a run that was cut off before its first line left this: nothing of the user's is taken for it."""
    indices = [path.with_name(name) for name in (INDEX_NAME, SOURCE_INDEX_NAME)]
    if path in (*indices, *map(former_of, indices)) and is_index(path):
        return True
    half = _HALF.fullmatch(path.name) and path.name.startswith(f".{CONFIG_NAME}.")
    return bool(half) or path.name == LOCK_NAME or path in map(aside_of, indices)


def _comparable(asked: dict[str, Any], there: dict[str, Any], above: str = "") -> dict[str, Any]:
    # A choice left to the machine or to the data is no difference from what was then chosen.
    values = dict(asked)
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(there.get(name), dict):
            values[name] = _comparable(value, there[name], f"{above}{name}.")
        elif value in (None, "auto") and _is_open(f"{above}{name}"):
            values[name] = there.get(name)
    return values


def _is_open(name: str) -> bool:
    for stage in STAGES.values():
        name = name.removeprefix(f"{stage}.")
    return name in _OPEN or name.startswith("network.")


def _has(values: dict[str, Any], name: str) -> bool:
    above, _, last = name.rpartition(".")
    inner = _at(values, above) if above else values
    return isinstance(inner, dict) and last in inner


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
