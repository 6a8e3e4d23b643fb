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
            except (CheckpointException, RuntimeError) as error:
                raise _disk_error(error, aside) from error

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


def _disk_error(error: BaseException, folder: Path) -> OSError:
    """The disk's own error, which torch wraps for each rank and may hide behind one of its own."""
    causes: list[BaseException] = [error]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
        if isinstance(cause, CheckpointException):
            causes += [failure for failure, _ in cause.failures.values()]
        causes += [inner for inner in (cause.__cause__, cause.__context__) if inner is not None and inner not in causes]
    free = shutil.disk_usage(folder).free
    return OSError(f"{str(causes[-1]).splitlines()[0]} ({free / 1e6:.1f} MB free on the disk)")


@contextmanager
def _alone() -> Iterator[None]:
    # One process is what was asked for, and torch warns of it at each save.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
