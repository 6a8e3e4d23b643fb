"""What a run would cost on a GPU that is not here: an estimate from stated rates. Never imports torch.

A step takes its multiplications at an assumed share of the stated rate, and the traffic of the optimiser at the stated
bandwidth, but no less than the calls of its operations. Where the run was rehearsed here, these are what of a step does
not grow with its batch, and what is done between steps is taken to last as many steps as it does here. From shapes
alone (`estimate_shapes`) calls are counted, what is kept for the backward pass has to pass the memory's bandwidth too,
and what is done between steps is its multiplications.
"""

from collections.abc import Sequence

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.plan.forecast import Forecast, StageForecast
from rectiflow.plan.gpus import Gpu
from rectiflow.plan.outline import Outline, StageOutline
from rectiflow.training.config import TrainingConfig

CONTEXT = 0.6e9  # bytes that a process of CUDA takes before it has any tensor, about
CALL = 5e-6  # seconds that eager torch takes to start an operation, about
_NUMBER = 4  # bytes of a float32
_PASSES = 4  # what is kept is written and read, and so are its gradients


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
        from_shapes: whether nothing was measured here either.
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
    from_shapes: bool = False

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
    _, peak = _rate(gpu, configs[-1])
    stages: list[StageEstimate] = []
    faster = 1.0
    for stage in forecast.stages:
        if stage.step is None:
            # Encoding and scores are passes of the networks, too: as much faster as the last stage's steps.
            stages.append(_unstepped(stage.name, stage.total.wall * faster, CONTEXT))
            continue
        made = _training(stage, next(own), gpu, peak * utilisation, count)
        assert made.step is not None
        faster = made.step / stage.step.wall
        stages.append(made)
    return _of(name, gpu, stages, configs[-1], utilisation, count)


def estimate_shapes(
    name: str,
    gpu: Gpu,
    outline: Outline,
    configs: Sequence[TrainingConfig],
    utilisation: float,
    count: int = 1,
) -> Estimate:
    """What a run would cost, of which nothing was measured; arguments as for `estimate`, with its outline.

    Raises:
        InputError: assumptions that cannot be, or GPUs among which the run could not be shared.
    """
    check_assumptions(utilisation, count)
    own = iter(configs)
    _, peak = _rate(gpu, configs[-1])
    stages = []
    for stage in outline.stages:
        if stage.parameters is None:
            stages.append(_unstepped(stage.name, stage.flops / (peak * utilisation * count), CONTEXT + stage.frozen))
        else:
            stages.append(_from_shapes(stage, next(own), gpu, peak * utilisation, count))
    found = _of(name, gpu, stages, configs[-1], utilisation, count)
    return found.model_copy(update={"from_shapes": True})


def _rate(gpu: Gpu, config: TrainingConfig) -> tuple[str, float]:
    """The precision of a run there, and the stated rate in it."""
    precision = "float32" if config.precision == "float32" else "bfloat16"
    return precision, getattr(gpu, precision)


def _of(
    name: str, gpu: Gpu, stages: Sequence[StageEstimate], config: TrainingConfig, utilisation: float, count: int
) -> Estimate:
    precision, peak = _rate(gpu, config)
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
        sharded=shares(config, count) > 1,
    )


def _unstepped(name: str, seconds: float, memory: float) -> StageEstimate:
    """Of a stage without steps."""
    return StageEstimate(
        name=name, step=None, samples_per_second=None, seconds=seconds, memory=memory, largest_batch=None
    )


def shares(config: TrainingConfig, count: int, stage: str = "") -> int:
    """Among how many of `count` GPUs one copy of the weights is cut up; 1 is not at all. `stage` is named in errors.

    Raises:
        InputError: the batch is too small for so many, or `parallel.shard` does not divide them.
    """
    if count * config.accumulate > config.batch:
        raise InputError(
            f"{f'{stage}: ' if stage else ''}a batch of {config.batch} is too small for {count} GPUs with accumulate="
            f"{config.accumulate}; name fewer (--gpus), or set its batch to {count * config.accumulate}."
        )
    if config.parallel.kind != "fsdp":
        return 1
    size = config.parallel.shard or count
    if count % size and count > 1:
        raise InputError(f"parallel.shard={size} does not divide {count} GPUs; set a divisor of that, or 0 for all.")
    return size if count > 1 else 1


def _training(stage: StageForecast, config: TrainingConfig, gpu: Gpu, rate: float, count: int) -> StageEstimate:
    assert stage.step is not None
    assert stage.steps is not None
    assert stage.batch is not None
    if stage.flops is None:
        raise InputError(f"the multiplications of a step of {stage.name} are not known, so no GPU can be estimated.")
    numbers = (stage.parameters or 0) / shares(config, count, stage.name)
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


def _from_shapes(stage: StageOutline, config: TrainingConfig, gpu: Gpu, rate: float, count: int) -> StageEstimate:
    assert stage.parameters is not None
    assert stage.batch is not None
    assert stage.steps is not None
    cut = shares(config, count)
    numbers, samples = stage.parameters / cut, stage.batch / count / config.accumulate
    # Where weights are cut up, they are gathered in the precision that is computed in.
    held = CONTEXT + stage.frozen + stage.states / cut + (stage.gathered if cut > 1 else stage.fixed)
    passed = _PASSES * stage.part(samples) * config.accumulate / gpu.bandwidth
    # What is compiled starts fewer operations, and nobody knows how many.
    calls = 0.0 if config.compile else CALL * stage.calls * config.accumulate
    step = max(stage.flops / count / rate, passed, calls) + numbers * traffic(config) / gpu.bandwidth
    most = max(0, int((gpu.memory - held) / stage.per_sample)) if stage.per_sample else None
    return StageEstimate(
        name=stage.name,
        step=step,
        samples_per_second=stage.batch / step,
        seconds=step * stage.steps + stage.between / rate,
        memory=held + stage.per_sample * samples,
        largest_batch=None if most is None else most * count * config.accumulate,
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
