"""`torch.distributed.checkpoint` as it is used here: a state that fits exactly, its copy, and what its errors mean."""

import shutil
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from rectiflow.base.errors import InputError

ERRORS = (CheckpointException, OSError, RuntimeError, EOFError, ValueError)  # what torch raises here


@final
class Exactly(dcp.DefaultLoadPlanner):
    """Takes no checkpoint that has other keys, shapes or types than what it is loaded into.

    Args:
        part: whether the checkpoint may have more keys, which are left out.
    """

    def __init__(self, part: bool = False) -> None:
        super().__init__()
        self._part = part

    def set_up_planner(self, state_dict: dict[str, Any], metadata: Any = None, is_coordinator: bool = False) -> None:
        """Compare, when torch has flattened the state.

        Raises:
            InputError: the first difference.
        """
        super().set_up_planner(state_dict, metadata, is_coordinator)
        there = metadata.state_dict_metadata
        remedy = "Go on with the settings that it was saved with, or choose another folder."
        for name, value in self.state_dict.items():
            if name not in there:
                raise InputError(f"it has no {name}, which is expected here. {remedy}")
            saved, now = _kind(there[name]), _kind(value)
            if saved != now:
                raise InputError(f"{name} is {saved} there and {now} here. {remedy}")
        for name in () if self._part else there:
            if name not in self.state_dict:
                raise InputError(f"it has {name}, which is unknown here. {remedy}")


def _kind(value: Any) -> str:
    if isinstance(value, TensorStorageMetadata):
        size, dtype = value.size, value.properties.dtype
    elif isinstance(value, torch.Tensor):
        size, dtype = value.size(), value.dtype
    else:
        return "no tensor"
    return f"{str(dtype).removeprefix('torch.')} {'×'.join(map(str, size)) or 'scalar'}"


def stager() -> Any:
    """What copies a state before it is written in the background.

    It keeps the copy's memory from save to save; it is pinned where there is a GPU, for the bus's full rate.
    """
    cuda = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
        )
    )


def causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, which torch wraps for each process and may hide behind one of its own."""
    found = [error]
    for cause in found:
        inner: list[BaseException | None] = [cause.__cause__, cause.__context__]
        if isinstance(cause, CheckpointException):
            inner += [failure for failure, _ in cause.failures.values()]
        found += [each for each in inner if each is not None and each not in found]
    return found


def disk_error(error: BaseException, folder: Path) -> OSError:
    """The disk's own error behind one of torch's, or one that says what torch says and how full the disk is."""
    for cause in causes(error):
        if isinstance(cause, OSError):
            return cause
    return OSError(f"{reason_of(error)} ({_free(folder)})")


def reason_of(error: BaseException) -> str:
    """The first line of what an error came from."""
    return first_line(causes(error)[-1])


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free on the disk"
    except OSError:
        return "no such folder"
