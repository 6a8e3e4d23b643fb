"""A run folder: begun, gone on with, or found finished; never overwritten by another run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from rectiflow.base.config import differences, read_yaml, write_yaml
from rectiflow.base.errors import InputError
from rectiflow.base.files import recover_folder, unwritable, write_text
from rectiflow.conditioning.encoders import check_encoders
from rectiflow.data.images import ImageSet
from rectiflow.data.sets import copy_index, is_index, keep_index, open_set, open_source
from rectiflow.flow.weight import weight_at_log_snrs
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.blocks import apply_switches
from rectiflow.training.captions import with_states
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.generators import GANStage, VAEStage
from rectiflow.training.log import RunLog, last_metrics
from rectiflow.training.precision import resolve_device, resolve_precision
from rectiflow.training.stage import Stage
from rectiflow.training.stages import FlowStage, Latents, PictureStage
from rectiflow.training.trainer import Interrupt, Trainer, parts

CONFIG_NAME = "run.yaml"
INDEX_NAME = "inventory"
SOURCE_INDEX_NAME = "source-inventory"
LOCK_NAME = ".lock"
CAPTIONS_NAME = "captions"
GENERATORS: dict[str, type[FlowStage] | type[VAEStage] | type[GANStage]] = {
    "flow": FlowStage,
    "vae": VAEStage,
    "gan": GANStage,
}


@dataclass(frozen=True)
class Outcome:
    """How a call to `train` ended.

    Args:
        step: steps done.
        finished: whether that is all of them.
        trained: whether this call trained at all.
    """

    step: int
    finished: bool
    trained: bool


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


def source_of(config: TrainingConfig, data: ImageSet, index: Path | None) -> ImageSet | None:
    """What a run starts from, if it is a bridge."""
    return open_source(config.data, data.shape, index) if config.data.source_dir else None


def describe_run(folder: Path) -> dict[str, Any]:
    """What the run in `folder` is and how far it has come, in plain values."""
    config = read_run(folder)
    saved = Checkpoints(folder / "checkpoints", config.keep).steps()
    weight = {}
    if isinstance(config, RunConfig) and not config.flow.one_step:  # such a model is trained at no noise level
        weight = weight_at_log_snrs(config.flow, config.times, config.weight)
    return {
        "run": str(folder),
        "recipe": config.recipe,
        "checkpoint_step": saved[-1] if saved else 0,
        "steps": config.steps,
        "precision": config.precision,
        **({"log_snr_weight": weight} if weight else {}),
        "last_metrics": last_metrics(folder / "metrics.jsonl"),
        "model": str(folder / "model") if (folder / "model" / "config.json").is_file() else None,
    }


def train(config: TrainingConfig, folder: Path, console: Console, index: Path | None = None) -> Outcome:
    """Train `config` in `folder`: begin, go on where it stopped, or do nothing if all its steps are done.

    Args:
        config: the run as asked for.
        folder: its folder; made if need be.
        console: where progress is shown.
        index: which pictures to begin with, as another run keeps them; None surveys the folder of pictures.

    Raises:
        InputError: the folder holds another run or something else, or training cannot go on; one line.
    """
    former = former_run(config, folder)
    with alone_in(folder):
        return train_here(former or config, former, folder, console, index=index)


def finished(config: TrainingConfig, folder: Path) -> bool:
    """Whether all steps of a run are done and its model is there."""
    saved = Checkpoints(folder / "checkpoints", config.keep).steps()
    return bool(saved) and saved[-1] == config.steps and (folder / "model" / "config.json").is_file()


def check_texts(config: TrainingConfig) -> None:
    """Nothing, if what reads the captions of a run is there: told before many pictures are looked into.

    Raises:
        InputError: it is not; one line.
    """
    if isinstance(config, RunConfig) and config.text is not None:
        check_encoders(config.text)


def pictures_of(config: TrainingConfig, index: Path | None, console: Console) -> ImageSet:
    """The pictures of a run: those that `index` keeps, or those that lie there now; what was found is shown.

    Raises:
        InputError: nothing there can be trained on; one line.
    """
    data = open_set(config.data, index)
    _report(data, console)
    return data


def write_down(config: TrainingConfig, data: ImageSet, folder: Path) -> None:
    """Write a run's settings and which pictures it has.

    Raises:
        InputError: the disk is full or read-only.
    """
    keep_index(data, folder / INDEX_NAME)
    write_text(folder / CONFIG_NAME, write_yaml(config.model_dump(mode="json")))


def train_here(
    config: TrainingConfig,
    former: TrainingConfig | None,
    folder: Path,
    console: Console,
    latents: Latents | None = None,
    index: Path | None = None,
) -> Outcome:
    """`train` in a folder that this process holds.

    Args:
        config: the run.
        former: what its `run.yaml` says, if there is one.
        folder: its folder.
        console: where progress is shown.
        latents: of the run's pictures, if it trains in these.
        index: see `train`.
    """
    recover_folder(folder / "model")
    if finished(config, folder):
        return Outcome(config.steps, finished=True, trained=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    check_texts(config)
    data = pictures_of(config, index if former is None else folder / INDEX_NAME, console)
    stage, source = _stage(config, data, device, latents), None
    if config.data.source_dir:
        source = source_of(config, data, None if former is None else folder / SOURCE_INDEX_NAME)
        assert source is not None
        _report(source, console)
        stage.bridge_from(source)
    apply_switches(stage.module, config)
    precision, reason = resolve_precision(config.precision, device, lambda: _probe(stage, config))
    config = stage.config.model_copy(update={"precision": precision})
    if config != former:
        _probe(stage, config)  # settings that cannot be trained are refused before they are written down
        if source is not None:
            keep_index(source, folder / SOURCE_INDEX_NAME)
        if former is None and index is not None:
            copy_index(index, folder / INDEX_NAME)
        write_down(config, data, folder)
    if isinstance(stage, PictureStage) and stage.config.text is not None:
        place = Path(stage.config.text.cache) if stage.config.text.cache else folder / CAPTIONS_NAME
        stage.encoders = with_states(stage.encoders, data, place, console)
    trainer = Trainer(stage, config, folder, device)
    start = trainer.restore()
    size = sum(p.numel() for p in stage.module.parameters())
    console.print(
        f"{config.recipe}: {len(data.train)} training samples, {len(data.held_out)} held out; "
        f"{size / 1e6:.2f} M parameters; {device}, {precision} ({reason}); step {start} of {config.steps}",
        highlight=False,
        soft_wrap=True,
    )
    for note in config.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    with RunLog(folder, start, config.steps, console) as log, Interrupt() as interrupt:
        if start == config.steps:
            trainer.save()  # the model was lost after its last checkpoint
        done = trainer.fit(log, interrupt)
    return Outcome(trainer.step, done, trained=True)


def _stage(config: TrainingConfig, data: ImageSet, device: torch.device, latents: Latents | None) -> Stage:
    if isinstance(config, AutoencoderRunConfig):
        return AutoencoderStage(config, data, device)
    assert isinstance(config, RunConfig)
    return GENERATORS[config.objective](config, data, device, latents)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder while training; the operating system lets go of it however the process ends.

    Raises:
        InputError: another process trains there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is training in {folder}; wait for it, or choose another --run.") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()
        if not (folder / CONFIG_NAME).exists():  # refused before it began: leave nothing behind
            (folder / LOCK_NAME).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def _report(data: ImageSet, console: Console) -> None:
    """A table of what was found in a folder, used, skipped and why."""
    if not data.report:
        return
    table = Table("data", "", "", box=None, show_header=False)
    for what, count, note in data.report:
        table.add_row(what, f"{count:,}", note)
    console.print(table)


def former_run(config: TrainingConfig, folder: Path) -> TrainingConfig | None:
    """The run that `folder` already holds, if it is this one; None if it holds nothing."""
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
    there = former.model_dump(mode="json")
    asked = _comparable(config.model_dump(mode="json"), there)
    if names := differences(asked, there):
        first = names[0]
        raise InputError(
            f"{folder} was begun with other settings ({', '.join(names)}; {first} is {_at(there, first)} there, "
            f"{_at(asked, first)} here); choose another --run, or go on with it as it is: "
            f"rectiflow train --resume {folder}"
        )
    return former


def _is_remnant(path: Path) -> bool:
    """Whether a run that was cut off before its first line left this: nothing of the user's is taken for it."""
    return path.name == LOCK_NAME or (path.name in (INDEX_NAME, SOURCE_INDEX_NAME) and is_index(path))


def _comparable(asked: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    # A choice left to the machine or to the data is no difference from what was then chosen.
    values = dict(asked)
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(there.get(name), dict):
            values[name] = _comparable(value, there[name])
        elif value in (None, "auto"):
            values[name] = there.get(name)
    return values


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _probe(stage: Stage, config: TrainingConfig) -> None:
    try:
        for turn in stage.turns:
            stage.loss(config.steps - 1, parts(config)[0], turn).backward()  # the last step has every term
    except RuntimeError as error:
        if not config.compile or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise InputError(f"compile=true does not work on this machine ({reason}); set compile=false.") from error
    stage.module.zero_grad(set_to_none=True)
