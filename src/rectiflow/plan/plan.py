"""The plan of a run: rehearsed on this machine, estimated for named GPUs."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rectiflow.base.config import Config
from rectiflow.plan import machine
from rectiflow.plan.estimate import Estimate, check_assumptions, estimate
from rectiflow.plan.forecast import Forecast, forecast
from rectiflow.plan.gpus import gpu
from rectiflow.plan.probe import Probed, Rehearse, probe, training_stages
from rectiflow.training.config import TrainingConfig
from rectiflow.training.precision import resolve_device

SECONDS = 4.0


class Plan(Config):
    """What a run will cost here, and would cost elsewhere.

    Args:
        here: on this machine, measured.
        there: on the GPUs that were named, estimated.
        measured: what the rehearsals found.
    """

    here: Forecast
    there: tuple[Estimate, ...] = ()
    measured: Probed


def plan(
    config: TrainingConfig,
    gpus: Sequence[str] = (),
    count: int = 1,
    utilisation: float = 0.4,
    seconds: float = SECONDS,
    rehearse: Rehearse | None = None,
) -> Plan:
    """Plan a run; nothing of it is kept.

    Args:
        config: the run.
        gpus: names of GPUs to estimate it for.
        count: how many of each share a batch.
        utilisation: assumed share of their stated rate, in (0, 1].
        seconds: that the steps of a kind, or something between steps, may take to be measured, about.
        rehearse: see `probe`.

    Raises:
        InputError: what the run would refuse, no such GPU, or an assumption that cannot be; one line.
    """
    check_assumptions(utilisation, count)
    named = {name: gpu(name) for name in gpus}
    available = machine.available(resolve_device(config.device))
    found = probe(config, available, seconds, rehearse)
    stages, free = training_stages(config), shutil.disk_usage(Path.cwd()).free
    here = forecast(config, stages, found.whole, found.small, available, free)
    there = tuple(estimate(name, each, here, stages, utilisation, count) for name, each in named.items())
    return Plan(here=here, there=there, measured=found)
