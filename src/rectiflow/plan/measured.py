"""What a rehearsal has measured, as plain values that go from process to process. Never imports torch."""

from collections.abc import Iterable
from typing import Self

from rectiflow.base.config import Config


class Cost(Config):
    """Seconds by the clock, and seconds of this process's threads together.

    Args:
        wall: by the clock.
        cpu: of the processor.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(wall=self.wall + other.wall, cpu=self.cpu + other.cpu)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(wall=self.wall - other.wall, cpu=self.cpu - other.cpu)

    def __mul__(self, times: float) -> "Cost":
        return Cost(wall=self.wall * times, cpu=self.cpu * times)

    @property
    def alone(self) -> float:
        """Seconds it would take about, if nothing else ran: less than by the clock where others had the processor."""
        return min(self.wall, self.cpu) if self.cpu else self.wall

    def at_least(self, other: "Cost") -> "Cost":
        """Each of the two at least as long as in `other`."""
        return Cost(wall=max(self.wall, other.wall), cpu=max(self.cpu, other.cpu))

    @classmethod
    def sum(cls, costs: "Iterable[Cost]") -> Self:
        """Of all together; of none 0."""
        listed = list(costs)
        return cls(wall=sum(cost.wall for cost in listed), cpu=sum(cost.cpu for cost in listed))


class Event(Config):
    """Something that a run does between steps.

    Args:
        first: its cost when it is done for the first time, with what is then compiled.
        again: its cost every other time.
        bytes: what it leaves on the disk.
    """

    first: Cost = Cost()
    again: Cost = Cost()
    bytes: int = 0

    def times(self, count: int) -> Cost:
        """Of so many."""
        return self.first + self.again * (count - 1) if count else Cost()


class Window(Config):
    """Steps of a run that cost alike (`Stage.kind`).

    Args:
        kind: what they have in common, in words.
        start: the first of them.
        count: how many of them the whole run has, about.
        taken: how many of them were measured; a kind of which none was counts as the others do.
        mean: cost of one.
        flops: multiplications and additions of one, forward and backward; 0 if they are not known.
    """

    kind: str
    start: int
    count: int
    taken: int
    mean: Cost
    flops: float = 0.0


class Rehearsed(Config):
    """One training stage, as it was rehearsed.

    Args:
        name: of the stage.
        batch: samples in a step.
        steps: of the whole run.
        precision: that it computes in.
        parameters: numbers that are trained.
        averages: how many averages of the weights are kept.
        start: cost of what comes before its first step and after what was before.
        warm: what its first steps cost more than the later ones.
        windows: its steps.
        held_out: the loss on held-out data.
        preview: a preview.
        save: a checkpoint and the model.
        last_save: the same after the last step.
        average: a snapshot of each power average.
        checkpoint: bytes of a checkpoint.
        model: bytes of the model.
        log: bytes of a line of metrics, with its TensorBoard events.
        steps_peak: greatest memory while it stepped, in bytes.
        peak: greatest memory in all of the stage, in bytes.
        workers: memory of the processes that decode ahead, in bytes.
        pages: bytes of the latents that the run will have read, which the system keeps in memory while it can.
    """

    name: str
    batch: int
    steps: int
    precision: str
    parameters: int
    averages: int
    start: Cost
    warm: Cost
    windows: tuple[Window, ...]
    held_out: Event = Event()
    preview: Event = Event()
    save: Event = Event()
    last_save: Cost = Cost()
    average: Event = Event()
    checkpoint: int = 0
    model: int = 0
    log: int = 0
    steps_peak: int = 0
    peak: int = 0
    workers: int = 0
    pages: int = 0

    @property
    def step(self) -> Cost:
        """Mean cost of a step over the whole run."""
        return Cost.sum(window.mean * window.count for window in self.windows) * (1 / self.steps)

    @property
    def flops(self) -> float:
        """Mean of the multiplications and additions of a step over the whole run."""
        return sum(window.flops * window.count for window in self.windows) / self.steps


class Between(Config):
    """What a run of latents does beside training: the encoding, or the final scores.

    Args:
        start: cost of what comes before.
        cost: of the whole of it.
        bytes: what it leaves on the disk.
        peak: greatest memory, in bytes.
        share: of it that was done for the measurement; the rest is taken to be like it.
    """

    start: Cost = Cost()
    cost: Cost = Cost()
    bytes: int = 0
    peak: int = 0
    share: float = 1.0


class Rehearsal(Config):
    """A whole run, as it was rehearsed by one process.

    Args:
        stages: its training stages in their order.
        encoding: of its latents; None has none.
        scores: of the finished model; None has none.
        end: cost of what comes after all that.
        other: bytes of what else lies in the run's folder.
    """

    stages: tuple[Rehearsed, ...]
    encoding: Between | None = None
    scores: Between | None = None
    end: Cost = Cost()
    other: int = 0


class Asked(Config):
    """What a rehearsal is asked for.

    Args:
        config: the run, in plain values.
        folder: where it may write.
        events: whether what happens between steps is measured too.
        seconds: that the steps of a phase, or an event, may take about.
        began: `time.time()` when its process was asked for.
    """

    config: dict[str, object]
    folder: str
    events: bool
    seconds: float
    began: float
