"""From what a rehearsal has measured to what the run will cost. Never imports torch."""

from collections.abc import Sequence

from rectiflow.base.config import Config
from rectiflow.plan.line import Line
from rectiflow.plan.measured import Between, Cost, Event, Rehearsal, Rehearsed
from rectiflow.training.config import EveryConfig, TrainingConfig


class Disk(Config):
    """What a stage leaves on the disk, in bytes.

    Args:
        checkpoints: those that are kept.
        model: the model.
        previews: pictures of samples, and snapshots of averages.
        metrics: lines of metrics, with TensorBoard's.
    """

    checkpoints: int = 0
    model: int = 0
    previews: int = 0
    metrics: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.checkpoints + self.model + self.previews + self.metrics


class StageForecast(Config):
    """What one stage of a run will cost.

    Args:
        name: of the stage.
        parameters: numbers that are trained; None of a stage that trains none.
        batch: samples in a step.
        steps: of the stage.
        precision: that it computes in.
        flops: of a step, a multiplication and its addition as two; None if they are not known.
        step: cost of a step.
        parts: cost of all that it does, by name.
        memory: greatest memory of the process in this stage, in bytes.
        workers: memory of the processes that decode ahead, in bytes.
        disk: what it leaves, in bytes.
        overhead: seconds of a step that do not grow with its batch; 0 if they cannot be seen.
        per_sample: memory that one more sample in a batch takes, in bytes; None if it cannot be seen.
        largest_batch: that fits into the memory there is; None if more samples take no more memory that could be seen.
        measured_batch: the batch it was rehearsed with, if that is a smaller one.
        share: of a stage without steps that was done to measure it.
    """

    name: str
    parameters: int | None = None
    batch: int | None = None
    steps: int | None = None
    precision: str | None = None
    flops: float | None = None
    step: Cost | None = None
    parts: dict[str, Cost]
    memory: int
    workers: int = 0
    disk: int
    overhead: float = 0.0
    per_sample: float | None = None
    largest_batch: int | None = None
    measured_batch: int | None = None
    share: float = 1.0

    @property
    def total(self) -> Cost:
        """Of the whole stage."""
        return Cost.sum(self.parts.values())


class Forecast(Config):
    """What a run will cost on this machine.

    Args:
        recipe: its name.
        stages: of the run, in their order.
        end: cost of what comes after the last of them.
        other: bytes of what else it leaves.
        available: bytes of memory that there are.
        free: bytes that are free on the disk.
    """

    recipe: str
    stages: tuple[StageForecast, ...]
    end: Cost = Cost()
    other: int = 0
    available: int
    free: int

    @property
    def total(self) -> Cost:
        """Of the whole run."""
        return Cost.sum([*(stage.total for stage in self.stages), self.end])

    @property
    def memory(self) -> int:
        """The greatest memory of its process."""
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """What it leaves."""
        return sum(stage.disk for stage in self.stages) + self.other


def counts(every: EveryConfig, steps: int) -> dict[str, int]:
    """How often a run of so many steps does what is done between them; the last step has each that is not 0."""

    def due(apart: int) -> int:
        return -(-steps // apart) if apart else 0

    early, first = 0, every.first_preview
    while first and first < min(every.preview, steps):
        early, first = early + (first % every.preview != 0), 2 * first
    names = ("log", "held_out", "save", "average")
    return {**{name: due(getattr(every, name)) for name in names}, "preview": due(every.preview) + early}


def stage_forecast(
    whole: Rehearsed, small: Sequence[Rehearsed], config: TrainingConfig, available: int
) -> StageForecast:
    """What a stage will cost.

    Args:
        whole: the stage as it was rehearsed.
        small: the same with parts of its batch.
        config: its settings.
        available: bytes of memory that there are.
    """
    steps, often = whole.steps, counts(config.every, whole.steps)
    times = Line.through([(each.batch, each.step.wall) for each in small])
    longer = times.at(config.batch) / times.at(whole.batch) if whole.batch != config.batch else 1.0
    measured = [*small, whole] if not config.compile else [*small]
    memory = Line.through([(each.batch, each.steps_peak) for each in measured])
    stepping = whole.steps_peak + memory.slope * (config.batch - whole.batch)
    step = whole.step * longer
    saves = Event(first=whole.save.first, again=whole.save.again).times(max(0, often["save"] - 1))
    parts = {
        "start": whole.start,
        "warm-up": whole.warm * longer,
        "steps": step * steps,
        "held-out": whole.held_out.times(often["held_out"]),
        "previews": whole.preview.times(often["preview"]),
        "averages": whole.average.times(often["average"]),
        "saves": saves + whole.last_save,
    }
    room = available - stepping - whole.workers
    return StageForecast(
        name=whole.name,
        parameters=whole.parameters,
        batch=config.batch,
        steps=steps,
        precision=whole.precision,
        flops=whole.flops * config.batch / whole.batch or None,
        step=step,
        parts=parts,
        memory=round(max(whole.peak, stepping) + whole.pages),
        workers=whole.workers,
        disk=disk_of(whole, config, often).total,
        overhead=max(0.0, times.base),
        per_sample=memory.slope or None,
        largest_batch=max(0, int(config.batch + room / memory.slope)) if memory.slope else None,
        measured_batch=whole.batch if whole.batch != config.batch else None,
    )


def disk_of(whole: Rehearsed, config: TrainingConfig, often: dict[str, int]) -> Disk:
    """What a stage leaves at most, by what it leaves each time and how often."""
    best = config.keep_best if often["held_out"] else 0  # some of the best may be among the newest
    return Disk(
        checkpoints=whole.checkpoint * min(config.keep + best, often["save"]),
        model=whole.model if often["save"] else 0,
        previews=whole.preview.bytes * often["preview"] + whole.average.bytes * often["average"],
        metrics=whole.log * (often["log"] + often["held_out"]),
    )


def forecast(
    config: TrainingConfig,
    stages: Sequence[TrainingConfig],
    whole: Rehearsal,
    small: Sequence[Rehearsal],
    available: int,
    free: int,
) -> Forecast:
    """What a run will cost.

    Args:
        config: the run.
        stages: settings of each of its training stages, in their order.
        whole: the run as it was rehearsed.
        small: the same with parts of its batches.
        available: bytes of memory that there are.
        free: bytes free on the disk.
    """
    told = [
        stage_forecast(stage, [each.stages[number] for each in small], own, available)
        for number, (stage, own) in enumerate(zip(whole.stages, stages, strict=True))
    ]
    if whole.encoding is not None:
        told.insert(len(told) - 1, _between("latents", whole.encoding))
    if whole.scores is not None:
        told.append(_between("evaluation", whole.scores))
    return Forecast(
        recipe=config.recipe,
        stages=tuple(told),
        end=whole.end,
        other=whole.other,
        available=available,
        free=free,
    )


def _between(name: str, found: Between) -> StageForecast:
    return StageForecast(
        name=name,
        parts={"start": found.start, name: found.cost},
        memory=found.peak,
        disk=found.bytes,
        share=found.share,
    )
