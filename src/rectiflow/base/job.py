"""What `torchrun` tells each process of the job that it starts. Never imports torch."""

import os

from rectiflow.base.errors import InputError


def alone() -> bool:
    """Whether this process was started by itself.

    Raises:
        InputError: what the environment says of the job is no number.
    """
    return _number("WORLD_SIZE", "1") == 1


def local_rank() -> int:
    """The number of this process among those of its machine, from 0.

    Raises:
        InputError: what the environment says of it is no number.
    """
    return _number("LOCAL_RANK", "0")


def follows() -> bool:
    """Whether this is one of several processes of a job, and not the first."""
    return os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"


def _number(name: str, default: str) -> int:
    value = os.environ.get(name, default)
    if not value.isdecimal():
        raise InputError(
            f"{name}={value!r} in the environment is no number of processes; start them by torchrun, or unset it."
        )
    return int(value)
