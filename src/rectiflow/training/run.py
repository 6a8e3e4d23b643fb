"""A run folder: begun, gone on with, or found finished; never overwritten by another run."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rectiflow.base.autocast import autocast
from rectiflow.base.errors import InputError
from rectiflow.base.memory_full import told_if_full
from rectiflow.base.ranks import first_then_others, from_first, gather, started
from rectiflow.conditioning.encoders import check_encoders
from rectiflow.data.images import ImageSet
from rectiflow.data.sets import copy_index, keep_index, open_set, open_source
from rectiflow.flow.weight import weight_at_log_snrs
from rectiflow.training.alike import check_alike
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.blocks import apply_switches
from rectiflow.training.captions import with_states
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.generators import GANStage, VAEStage
from rectiflow.training.interrupt import Interrupt
from rectiflow.training.less_memory import does_not_fit
from rectiflow.training.log import RunLog, last_metrics
from rectiflow.training.parallel import check_parallel
from rectiflow.training.parts import parts
from rectiflow.training.precision import resolve_device, resolve_precision
from rectiflow.training.run_folder import (
    CONFIG_NAME,
    INDEX_NAME,
    SOURCE_INDEX_NAME,
    agreed_former,
    alone_in,
    begun,
    finished,
    model_step,
    owner,
    read_run,
    write_down,
)
from rectiflow.training.sinks import check_sinks, open_sinks
from rectiflow.training.stage import Stage
from rectiflow.training.stages import FlowStage, Latents, PictureStage
from rectiflow.training.trainer import Trainer

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
        finished: whether that is all of them, and all that comes after them is done too.
        trained: whether this call trained at all.
        signal: what asked it to stop, be it in the last step; 0 if nothing did.
    """

    step: int
    finished: bool
    trained: bool
    signal: int = 0


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
    check_alike(config.model_dump(mode="json"))
    agreed_former(config, folder)  # what is refused leaves a folder as it was
    with alone_in(folder):
        former = agreed_former(config, folder)  # until now another job may have had it
        return train_here(former or config, former, folder, console, index=index)


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


def _sets(
    config: TrainingConfig, former: TrainingConfig | None, folder: Path, console: Console, index: Path | None
) -> tuple[ImageSet, ImageSet | None]:
    """The pictures of a run, and those that it starts from if it is a bridge.

    Of several processes the first one looks through the folders and keeps what it found, the others open that; an
    index that is given all of them open.
    """
    begins = former is None
    data = source = None
    with first_then_others() as mine:
        where = index if begins and (mine or index is not None) else folder / INDEX_NAME
        data = pictures_of(config, where, console) if mine else open_set(config.data, where)
        if config.data.source_dir:
            source = source_of(config, data, None if begins and mine else folder / SOURCE_INDEX_NAME)
            assert source is not None
            _report(source, console)
        if mine and begins and started():
            keep_index(data, folder / INDEX_NAME)
            if source is not None:
                keep_index(source, folder / SOURCE_INDEX_NAME)
    assert data is not None
    return data, source


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
    if from_first(finished(config, folder)):
        return Outcome(config.steps, finished=True, trained=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    with told_if_full(partial(does_not_fit, config, folder, device)):
        check_sinks(config.watch)
        check_texts(config)
        check_parallel(config, owner(folder)[1])
        data, source = _sets(config, former, folder, console, index)
        stage = _stage(config, data, device, latents, begun(config, folder))
        if source is not None:
            stage.bridge_from(source)
        apply_switches(stage.module, config)
        config, reason = _settled(stage, former, folder, device, data, source, index)
        if isinstance(stage, PictureStage) and stage.config.text is not None:
            place = Path(stage.config.text.cache) if stage.config.text.cache else folder / CAPTIONS_NAME
            with first_then_others():
                stage.encoders = with_states(stage.encoders, data, place, console)
        trainer = Trainer(stage, config, folder, device)
        start = trainer.restore(lambda words: console.print(words, highlight=False, soft_wrap=True))
    size = sum(p.numel() for p in stage.module.parameters())
    console.print(
        f"{config.recipe}: {len(data.train)} training samples, {len(data.held_out)} held out; "
        f"{size / 1e6:.2f} M parameters; {device}, {config.precision} ({reason}); step {start} of {config.steps}",
        highlight=False,
        soft_wrap=True,
    )
    for note in config.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    return _fit(trainer, console, start)


def _settled(
    stage: Stage,
    former: TrainingConfig | None,
    folder: Path,
    device: torch.device,
    data: ImageSet,
    source: ImageSet | None,
    index: Path | None,
) -> tuple[TrainingConfig, str]:
    """The run with its precision chosen, tried and written down; and what the precision was chosen from."""
    chosen = ("", "")
    with first_then_others() as mine:
        if mine:
            config = stage.config
            with told_if_full(partial(does_not_fit, config, folder, device)):
                chosen = resolve_precision(config.precision, device, lambda: _probe(stage, config, parts(config)[0]))
                config = config.model_copy(update={"precision": chosen[0]})
                # Settings that cannot be trained are refused before they are written down; whether a network can be
                # compiled may be another question on another machine, and `compile` may have been set since.
                if config != former or config.compile:
                    # Weights that will be cut up all lie in this process as yet: one sample has to do.
                    part = slice(1) if config.parallel.kind == "fsdp" else parts(config)[0]
                    with autocast(device, config.precision):
                        _probe(stage, config, part)
            # A run that goes on remembers how it was last carried out.
            if not (folder / CONFIG_NAME).exists() or config != read_run(folder):
                if former is None and source is not None:
                    keep_index(source, folder / SOURCE_INDEX_NAME)
                if former is None and index is not None:
                    copy_index(index, folder / INDEX_NAME)
                write_down(config, data, folder)
    precision, reason = from_first(chosen)
    return stage.config.model_copy(update={"precision": precision}), reason


def _fit(trainer: Trainer, console: Console, start: int) -> Outcome:
    """Train to the last step, or until asked to stop."""
    config, folder, device = trainer.config, trainer.folder, trainer.device
    with first_then_others():
        sinks = open_sinks(config.watch, folder, start, config.model_dump(mode="json"))
    with Interrupt() as interrupt:
        with (
            RunLog(folder, start, config.steps, console, sinks) as log,
            told_if_full(lambda: does_not_fit(config, folder, device, trainer.step)),
        ):
            if start == config.steps:
                trainer.save()  # the model was lost after its last checkpoint
            done = trainer.fit(log, interrupt)
            if done:
                saved = model_step(folder / "model") == trainer.step
                log.reason = "" if saved else "nothing of the last step is saved: every.save is 0"
        asked = max(gather(interrupt.signal))  # whichever process was asked: all stop, or none
    return Outcome(trainer.step, done, trained=True, signal=asked)


def _stage(config: TrainingConfig, data: ImageSet, device: torch.device, latents: Latents | None, begun: bool) -> Stage:
    if isinstance(config, AutoencoderRunConfig):
        return AutoencoderStage(config, data, device, begun)
    assert isinstance(config, RunConfig)
    return GENERATORS[config.objective](config, data, device, latents)


def _report(data: ImageSet, console: Console) -> None:
    """A table of what was found in a folder, used, skipped and why."""
    if not data.report:
        return
    table = Table("data", "", "", box=None, show_header=False)
    for what, count, note in data.report:
        table.add_row(what, f"{count:,}", note)
    console.print(table)


def _probe(stage: Stage, config: TrainingConfig, part: slice) -> None:
    """A step there and back, by a part of its batch; no weight is moved."""
    try:
        for turn in stage.turns:
            stage.loss(config.steps - 1, part, turn).backward()  # the last step has every term
    except RuntimeError as error:
        if not config.compile or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise InputError(f"compile=true does not work on this machine ({reason}); set compile=false.") from error
    finally:
        stage.module.zero_grad(set_to_none=True)
