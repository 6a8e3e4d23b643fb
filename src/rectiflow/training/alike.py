"""That all processes of a job are of one mind: the same code, the same settings."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import rectiflow
from rectiflow.base import ranks
from rectiflow.base.config import differences
from rectiflow.base.errors import InputError


def check_alike(settings: Mapping[str, Any]) -> None:
    """Nothing, if every process has the same settings, the same torch and the same code of this library.

    Args:
        settings: of what the job is to do, in values that JSON has.

    Raises:
        InputError: one has not; it and what differs are named.
    """
    if not ranks.started():
        return
    mine = {"torch": torch.__version__, "code of rectiflow": _code(), "settings": dict(settings)}
    said = ranks.gather(mine)
    for rank, other in enumerate(said):
        names = differences(said[0], other)
        if names:
            what = ", ".join(name.removeprefix("settings.") for name in names)
            raise InputError(
                f"process {rank} differs from process 0 in {what}; start all processes of a job with the same command, "
                "and the same version on every machine."
            )


def _code() -> str:
    """SHA-256 over the source files of the library."""
    digest = hashlib.sha256()
    root = Path(rectiflow.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
