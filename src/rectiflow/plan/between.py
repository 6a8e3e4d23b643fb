"""What a run does between its steps, measured whole where that is short and in parts where it is long."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import nn

from rectiflow.data.images import ImageSet
from rectiflow.data.pictures import save_png
from rectiflow.plan import clock
from rectiflow.plan.measured import Cost, Event
from rectiflow.plan.views import First
from rectiflow.training import autoencoder_stage, stages
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.stage import Stage
from rectiflow.training.stages import PictureStage
from rectiflow.training.trainer import Trainer

_FORWARD = 1 / 3  # of a step's cost
_FEW = 16
Measured = TypeVar("Measured", Cost, Event)


def held_out_event(stage: Stage, module: nn.Module, sample: Cost, seconds: float) -> Event:
    """The loss on held-out data; of a part of them, if all would take long.

    Args:
        stage: what is trained.
        module: the average of its weights.
        sample: cost of a step, for each of its samples.
        seconds: that it may take, about.
    """
    device = next(module.parameters()).device
    if not isinstance(stage, PictureStage | AutoencoderStage):
        return clock.event(lambda: stage.held_out(module), device, seconds)
    most = autoencoder_stage._HELD_OUT if isinstance(stage, AutoencoderStage) else stages._HELD_OUT
    count = min(len(stage.data.held_out), most)
    few = max(_FEW, int(seconds / (sample.alone * _FORWARD))) if sample.alone else count
    if few >= count:
        return clock.event(lambda: stage.held_out(module), device, 2 * seconds)
    data, stored = stage.data, getattr(stage, "stored", stage.data)
    try:
        stage.data = _held_out(data, few)
        if isinstance(stage, PictureStage):
            stage.stored = stage.data if stored is data else _held_out(stored, few)
        found = clock.event(lambda: stage.held_out(module), device, 2 * seconds)
    finally:
        stage.data = data
        if isinstance(stage, PictureStage):
            stage.stored = stored
    again = found.again * (count / few)
    return Event(first=again + (found.first - found.again).at_least(Cost()), again=again)


def _held_out(data: ImageSet, count: int) -> ImageSet:
    return replace(data, held_out=First(data.held_out, count))


def preview_event(trainer: Trainer, seconds: float) -> Event:
    """A preview, written as the run does; from fewer of its solver's steps, if all would take long."""
    stage, device = trainer.stage, trainer.device
    place = trainer.folder / "samples" / "rehearsed.png"

    def shown() -> None:
        save_png(stage.preview(trainer.ema.module), place, {"step": 0, "recipe": stage.config.recipe})

    config = stage.config
    if not isinstance(config, RunConfig):
        found = clock.event(shown, device, seconds)
        return found.model_copy(update={"bytes": place.stat().st_size})
    once = _with_steps(stage, config, 1, lambda: clock.event(shown, device, seconds))
    more = _with_steps(stage, config, 3, lambda: clock.cost_of(shown, device))
    step = ((more - once.again) * 0.5).at_least(Cost())
    again = once.again + step * (config.preview.steps - 1)
    if again.wall < seconds:
        again = clock.cost_of(shown, device)
    first = again + (once.first - once.again).at_least(Cost())
    return Event(first=first, again=again, bytes=place.stat().st_size)


def _with_steps(stage: Stage, config: RunConfig, steps: int, call: Callable[[], Measured]) -> Measured:
    """What `call` gives while a preview takes so many of the solver's steps."""
    preview = config.preview.model_copy(update={"steps": steps})
    stage.config = config.model_copy(update={"preview": preview})
    try:
        return call()
    finally:
        stage.config = config
