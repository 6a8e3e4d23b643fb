"""The weights of a model as they were at a step of which a checkpoint is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.run_folder import read_run


def weights_at(run: Path, step: int | Literal["best"], like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The average of a flow's weights that became the model, or would have, at a step; and that step.

    Args:
        run: a run's folder.
        step: of a checkpoint that is there; "best" is that of the least held-out loss among them.
        like: the state of the run's flow, for names, shapes and types.

    Raises:
        InputError: no run of a flow, no such checkpoint, or it is damaged; one line.
    """
    config = read_run(run)
    if not isinstance(config, RunConfig) or config.objective != "flow":
        raise InputError(
            f"{run} trains no flow: of its checkpoints no model can be made; its own is in {run / 'model'}."
        )
    checkpoints = Checkpoints(run / "checkpoints", config.keep)
    there, asked = checkpoints.steps(), checkpoints.best() if step == "best" else step
    if asked is None:
        raise InputError(
            f"no checkpoint of {run} has a held-out loss (every.held_out), those of stops left aside; name a step: "
            f"{_listed(there)}."
        )
    if asked not in there:
        raise InputError(f"{run} has no checkpoint of step {asked}; expected one of {_listed(there)}, or best.")
    weights = {name: torch.empty_like(value) for name, value in like.items()}
    average = {str(config.ema.lengths[0]): weights} if config.ema.kind == "power" else weights
    checkpoints.load(asked, {"ema": average}, part=True)
    return weights, asked


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none: it has not saved any"
