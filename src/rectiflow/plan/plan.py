"""The plan of a run: rehearsed on this machine, estimated for named GPUs, or told from shapes alone."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from rectiflow.base import machine
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.plan.estimate import Estimate, check_assumptions, estimate, estimate_shapes, shares
from rectiflow.plan.forecast import Forecast, forecast
from rectiflow.plan.gpus import Gpu, gpu
from rectiflow.plan.outline import Outline, StageOutline
from rectiflow.plan.probe import SMALLEST, Probed, Rehearse, probe, training_stages
from rectiflow.training.config import TrainingConfig
from rectiflow.training.precision import lacks_bfloat16, resolve_device

SECONDS = 4.0
_SHARE = 0.8  # of the memory there is, that a rehearsal may be expected to take
_LONGEST = 60.0  # seconds of a step of the smallest rehearsal, beyond which there is none
_UTILISATION = 0.5  # of this machine's rate, by which that is told
_LITTLE = 2e7  # numbers of a run that is rehearsed without being looked at before


class Plan(Config):
    """What a run will cost here, and would cost elsewhere.

    Args:
        here: on this machine, measured; None if nothing was.
        there: on the GPUs that were named, estimated.
        measured: what the rehearsals found; None if there were none.
        outline: what is told from shapes where nothing was measured; else None.
        why: why nothing was measured; empty if it was, or was not wanted.
    """

    here: Forecast | None = None
    there: tuple[Estimate, ...] = ()
    measured: Probed | None = None
    outline: Outline | None = None
    why: str = ""


def plan(
    config: TrainingConfig,
    gpus: Sequence[str] = (),
    count: int = 1,
    utilisation: float = 0.4,
    seconds: float = SECONDS,
    rehearse: Rehearse | None = None,
    measure: bool = True,
) -> Plan:
    """Plan a run; nothing of it is kept.

    Args:
        config: the run.
        gpus: names of GPUs to estimate it for.
        count: how many of each share a batch.
        utilisation: assumed share of their stated rate, in (0, 1].
        seconds: that the steps of a kind, or something between steps, may take to be measured, about.
        rehearse: see `probe`.
        measure: whether to rehearse it here, where that can be; else all is told from shapes.

    Raises:
        InputError: what the run would refuse, no such GPU, or an assumption that cannot be; a model that is too big to
            be rehearsed here, if no GPU is named; one line.
    """
    check_assumptions(utilisation, count)
    named = {name: gpu(name) for name in gpus}
    stages = training_stages(config)
    for stage in stages if named else ():
        shares(stage, count)
    device = resolve_device(config.device)
    available = machine.available(device)
    why = too_big(config, available, device) if measure else ""
    if why and not named:
        raise InputError(f"{why} Name a GPU for an estimate from shapes: --gpu h100.")
    if why or not measure:
        return _from_shapes(config, named, count, utilisation, why)
    found = probe(config, available, seconds, rehearse)
    here = forecast(config, stages, found.whole, found.small, available, shutil.disk_usage(Path.cwd()).free)
    there = tuple(estimate(name, each, here, stages, utilisation, count) for name, each in named.items())
    return Plan(here=here, there=there, measured=found)


def _from_shapes(config: TrainingConfig, named: dict[str, Gpu], count: int, utilisation: float, why: str) -> Plan:
    from rectiflow.plan.outlined import outline

    stages, found = training_stages(config), outline(config)
    there = tuple(estimate_shapes(name, each, found, stages, utilisation, count) for name, each in named.items())
    return Plan(there=there, outline=found, why=why)


def too_big(config: TrainingConfig, available: int, device: torch.device) -> str:
    """Why a run cannot be rehearsed here, told from shapes before anything is tried; empty if it can.

    Args:
        config: the run.
        available: bytes of memory that it may take.
        device: where it would train.
    """
    from rectiflow.plan.outlined import most_parameters, outline
    from rectiflow.training.watch import matrix_rate

    try:
        if most_parameters(config) < _LITTLE:
            return ""
        auto = "float32" if lacks_bfloat16(device) else "bfloat16"
        found = outline(config, gpu=device.type == "cuda", look=False, auto=auto)
    except Exception:  # of whatever kind: the rehearsal says it better, or knows more
        return ""
    trained = [stage for stage in found.stages if stage.parameters is not None]
    for stage, own in zip(trained, training_stages(config), strict=True):
        rate = _UTILISATION * matrix_rate(device, stage.precision or "float32")
        why = _too_big(stage, own, available, rate)
        if why:
            return f"{stage.name} of {(stage.parameters or 0) / 1e6:,.0f} M parameters cannot be rehearsed here: {why}"
    return ""


def _too_big(stage: StageOutline, config: TrainingConfig, available: int, rate: float) -> str:
    samples = max(1, config.batch // SMALLEST)
    needed = stage.states + stage.frozen + stage.part(samples / min(config.accumulate, samples))
    if needed > _SHARE * available:
        return f"{samples} samples take {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} are free."
    step = stage.flops * samples / config.batch / rate
    if step > _LONGEST:
        return f"a step of {samples} samples would take {step:,.0f} s."
    return ""
