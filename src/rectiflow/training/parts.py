"""The parts that a step's batch is taken in: by the processes of a job beside each other, in each one after another."""

from itertools import pairwise

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.training.config import TrainingConfig


def parts(config: TrainingConfig) -> list[slice]:
    """This process's `accumulate` parts of a batch, as slices of positions in the whole one.

    Of W processes with A parts each, part a of process r is number r·A + a of the W·A parts of the batch, which differ
    by at most one sample.
    """
    mine, number = config.accumulate * ranks.rank(), config.accumulate * ranks.world()
    bounds = [config.batch * (mine + part) // number for part in range(config.accumulate + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def share(config: TrainingConfig) -> slice:
    """This process's share of a batch: all of its parts."""
    own = parts(config)
    return slice(own[0].start, own[-1].stop)


def check_parts(config: TrainingConfig, above: str = "") -> None:
    """Nothing, if every process has a sample for each of its parts.

    Args:
        config: a run, or a stage of one.
        above: what its settings' names begin with, such as "latent.train." of a stage.

    Raises:
        InputError: the batch is too small for so many processes.
    """
    number = config.accumulate * ranks.world()
    if number > config.batch:
        raise InputError(
            f"{above}batch={config.batch} is too small for {ranks.world()} processes with {above}accumulate="
            f"{config.accumulate}: expected at least {number} samples; start fewer processes, or set {above}batch="
            f"{number} in another --run. Any number of processes that has a sample for each will do, also on resume."
        )
