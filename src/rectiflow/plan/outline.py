"""What a run would compute and hold, found from shapes alone: plain values. Never imports torch."""

from rectiflow.base.config import Config


class StageOutline(Config):
    """One stage of a run, from shapes. A part is what one process takes of a batch at a time.

    Args:
        name: of the stage.
        parameters: numbers that are trained; None of a stage that trains none.
        batch: samples in a step; None likewise.
        steps: of the stage; None likewise.
        accumulate: parts that each process takes of it.
        precision: that it would compute in.
        flops: of a step, a multiplication and its addition as two; of a stage without steps, of all of it.
        between: FLOPs of all held-out losses and previews.
        calls: operations that a part starts, forward and backward.
        states: bytes of what is trained, its gradients, the optimiser's moments and the averages.
        fixed: bytes of what a part keeps for its backward pass that do not grow with it: weights as they are computed
            with.
        per_sample: bytes that one sample more keeps, and that its gradients take at a time.
        gathered: bytes of whole weights and their gradients that a process holds at a time where these are cut up.
        frozen: bytes of networks that are not trained.
        disk: bytes that it leaves, without previews and metrics.
    """

    name: str
    parameters: int | None = None
    batch: int | None = None
    steps: int | None = None
    accumulate: int = 1
    precision: str | None = None
    flops: float = 0.0
    between: float = 0.0
    calls: int = 0
    states: float = 0.0
    fixed: float = 0.0
    per_sample: float = 0.0
    gathered: float = 0.0
    frozen: float = 0.0
    disk: int = 0

    def part(self, samples: float) -> float:
        """Bytes that a part of so many samples keeps for its backward pass, and the gradients at hand in it."""
        return self.fixed + self.per_sample * samples


class Outline(Config):
    """A run, from shapes.

    Args:
        recipe: its name.
        stages: of the run, in their order.
        assumed: what was taken to be so, a line each.
        available: bytes of memory that this machine has free.
        free: bytes that are free on the disk.
    """

    recipe: str
    stages: tuple[StageOutline, ...]
    assumed: tuple[str, ...] = ()
    available: int
    free: int

    @property
    def disk(self) -> int:
        """What it leaves."""
        return sum(stage.disk for stage in self.stages)
