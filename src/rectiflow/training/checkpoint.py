"""Checkpoints by `torch.distributed.checkpoint`: written aside, renamed, the newest kept.

They are trusted files of one's own: they may hold pickled values, unlike model folders.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_folder


@final
class Checkpoints:
    """The checkpoints of a run, `step-00000500` and so on.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints there are, oldest first."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps; what was saved before stays until this one is whole.

        Raises:
            InputError: the disk is full or read-only.
        """
        path = self._path(step)

        def fill(aside: Path) -> None:
            try:
                with _alone():
                    dcp.save(state, checkpoint_id=aside, no_dist=True)
            except CheckpointException as error:
                # torch wraps what happened to each rank; the disk's own error is the one to tell.
                cause = next((e for e, _ in error.failures.values() if isinstance(e, OSError)), None)
                raise cause or error from error
            except RuntimeError as error:
                raise OSError(str(error).splitlines()[0]) from error

        write_folder(path, fill)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill `state`, tensors in place, from the checkpoint after `step` steps.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with _alone():
                dcp.load(state, checkpoint_id=self._path(step), no_dist=True)
        except (CheckpointException, OSError, RuntimeError, EOFError, ValueError) as error:
            raise InputError(
                f"{self._path(step)} cannot be read; remove it to go on from the one before. ({type(error).__name__})"
            ) from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


@contextmanager
def _alone() -> Iterator[None]:
    # One process is what was asked for, and torch warns of it at each save.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
