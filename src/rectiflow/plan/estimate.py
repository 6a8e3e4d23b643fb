"""What a run would cost on a GPU that is not here: an estimate from stated rates. Never imports torch.

A step takes its multiplications at an assumed share of the stated rate, and the traffic of the optimiser at the stated
bandwidth, but no less than what of a step does not grow with its batch here: the calls of its operations. What is done
between steps is taken to last as many steps as it does on this machine.
"""

from collections.abc import Sequence

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.plan.forecast import Forecast, StageForecast
from rectiflow.plan.gpus import Gpu
from rectiflow.training.config import TrainingConfig

CONTEXT = 0.6e9  # bytes that a process of CUDA takes before it has any tensor, about
_NUMBER = 4  # bytes of a float32


class StageEstimate(Config):
    """What one stage would cost.

    Args:
        name: of the stage.
        step: seconds of a step; None of a stage without steps.
        samples_per_second: of training; None likewise.
        seconds: of the whole stage.
        memory: bytes on each GPU.
        largest_batch: samples in all that fit; None if it cannot be told.
    """

    name: str
    step: float | None
    samples_per_second: float | None
    seconds: float
    memory: float
    largest_batch: int | None


class Estimate(Config):
    """What a run would cost on some GPUs of one kind.

    Args:
        gpu: its name, as it was asked for.
        full_name: what that is.
        count: how many.
        precision: that is computed in.
        peak: stated FLOP/s in that precision.
        memory_there: bytes that each has.
        source: of what is stated.
        utilisation: assumed share of the peak, in (0, 1].
        stages: of the run.
        sharded: whether weights, gradients and optimiser are cut up among the GPUs.
    """

    gpu: str
    full_name: str
    count: int
    precision: str
    peak: float
    memory_there: float
    source: str
    utilisation: float
    stages: tuple[StageEstimate, ...]
    sharded: bool

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage fits into the memory there."""
        return all(stage.memory <= self.memory_there for stage in self.stages)


def check_assumptions(utilisation: float, count: int) -> None:
    """Nothing, if they can be.

    Raises:
        InputError: a share outside of (0, 1], or no GPU.
    """
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation is a share of the peak rate in (0, 1], received {utilisation:g}; try 0.4.")
    if count < 1:
        raise InputError(f"--gpus must be at least 1, received {count}.")


def estimate(
    name: str,
    gpu: Gpu,
    forecast: Forecast,
    configs: Sequence[TrainingConfig],
    utilisation: float,
    count: int = 1,
) -> Estimate:
    """What a run would cost.

    Args:
        name: of the GPU, as it was asked for.
        gpu: its rates.
        forecast: of the run on this machine.
        configs: settings of its training stages, in their order.
        utilisation: assumed share of the peak rate, in (0, 1].
        count: GPUs that share the batch.
    """
    check_assumptions(utilisation, count)
    own = iter(configs)
    config = configs[-1]
    precision = "float32" if config.precision == "float32" else "bfloat16"
    peak = getattr(gpu, precision)
    stages: list[StageEstimate] = []
    faster = 1.0
    for stage in forecast.stages:
        if stage.step is None:
            # Encoding and scores are passes of the networks, too: as much faster as the last stage's steps.
            stages.append(
                StageEstimate(
                    name=stage.name,
                    step=None,
                    samples_per_second=None,
                    seconds=stage.total.wall * faster,
                    memory=CONTEXT,
                    largest_batch=None,
                )
            )
            continue
        made = _training(stage, next(own), gpu, peak * utilisation, count)
        assert made.step is not None
        faster = made.step / stage.step.wall
        stages.append(made)
    return Estimate(
        gpu=name,
        full_name=gpu.name,
        count=count,
        precision=precision,
        peak=peak,
        memory_there=gpu.memory,
        source=gpu.source,
        utilisation=utilisation,
        stages=tuple(stages),
        sharded=config.parallel.kind == "fsdp" and count > 1,
    )


def _training(stage: StageForecast, config: TrainingConfig, gpu: Gpu, rate: float, count: int) -> StageEstimate:
    assert stage.step is not None
    assert stage.steps is not None
    assert stage.batch is not None
    if stage.flops is None:
        raise InputError(f"the multiplications of a step of {stage.name} are not known, so no GPU can be estimated.")
    share = count if config.parallel.kind == "fsdp" else 1
    numbers = (stage.parameters or 0) / share
    step = max(stage.overhead, stage.flops / count / rate + numbers * traffic(config) / gpu.bandwidth)
    states, sample = numbers * state(config), stage.per_sample or 0.0
    memory = CONTEXT + states + sample * stage.batch / count
    events = stage.total.wall - stage.parts["steps"].wall - stage.parts["start"].wall - stage.parts["warm-up"].wall
    room = gpu.memory - CONTEXT - states
    return StageEstimate(
        name=stage.name,
        step=step,
        samples_per_second=stage.batch / step,
        seconds=step * (stage.steps + events / stage.step.wall) + stage.parts["start"].wall,
        memory=memory,
        largest_batch=max(0, int(room / sample)) * count if sample else None,
    )


def state(config: TrainingConfig) -> int:
    """Bytes that each trained number takes: itself, its gradient, the optimiser's moments and the averages.

    Muon has one moment for most of them; it is counted as AdamW, which has two.
    """
    averages = 1 if config.ema.kind == "exponential" else len(config.ema.lengths)
    return _NUMBER * (4 + averages)


def traffic(config: TrainingConfig) -> int:
    """Bytes that the optimiser and the averages read and write for each trained number in a step.

    The weight, its gradient and two moments are read, weight and moments written; an average is read and written.
    """
    averages = 1 if config.ema.kind == "exponential" else len(config.ema.lengths)
    return _NUMBER * (7 + 2 * averages)
