"""What is said where a run does not fit into memory: what is kept of it, and the command that goes on with less."""

from pathlib import Path

import torch

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.run_folder import CONFIG_NAME, owner


def smaller_parts(config: TrainingConfig, folder: Path) -> str:
    """What to try where a step does not fit: a sentence, with the command if one helps.

    Args:
        config: the run, or the stage of a run.
        folder: its folder, begun or not.
    """
    run, prefix = owner(folder)
    parts = min(2 * config.accumulate, config.batch // ranks.world())
    if parts <= config.accumulate:
        blocks = "" if config.activation_checkpointing else f"--set {prefix}activation_checkpointing=true, or "
        return f"The parts of a batch are as small as they can be: try {blocks}a smaller network in another --run."
    begun = (run / CONFIG_NAME).is_file()
    command = f"rectiflow train --resume {run}" if begun else "the same command with"
    return f"Take a batch in more parts: {command} --set {prefix}accumulate={parts}"


def does_not_fit(config: TrainingConfig, folder: Path, device: torch.device, step: int | None = None) -> str:
    """The line for a run that memory ran out on.

    Args:
        config: the run, or the stage of a run.
        folder: its folder.
        device: whose memory it was.
        step: steps done; None before training went on.
    """
    remedy = smaller_parts(config, folder)
    if step is None:
        return f"{device} had no memory left for a step of this run. {remedy}"
    prefix = owner(folder)[1]
    return (
        f"{device} had no memory left after step {step}: training stopped; {kept(config, folder)}. {remedy} "
        f"(where it was a preview or a held-out check that did not fit: {prefix}every.preview=0, "
        f"{prefix}every.held_out=0)"
    )


def kept(config: TrainingConfig, folder: Path) -> str:
    """What there is of a run whose training stopped, in a clause."""
    try:
        saved = Checkpoints(folder / "checkpoints", config.keep).steps()
    except InputError as error:
        return f"what it has saved cannot be read just now ({str(error).rstrip('.')})"
    return f"the last good model, after step {saved[-1]}, is in {folder / 'model'}" if saved else "none was saved"
