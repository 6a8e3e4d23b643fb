"""What a checkpoint says of itself: its step, its world, and the size and SHA-256 of each of its files."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from rectiflow.base import ranks
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256

MANIFEST_NAME = "manifest.json"
FORMAT: Literal[1] = 1


class Entry(Config):
    """One file.

    Args:
        size: in bytes.
        sha256: of its bytes, hexadecimal.
    """

    size: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Entry":
        """The file as it lies there."""
        return cls(size=path.stat().st_size, sha256=sha256(path))


class Manifest(Config):
    """What `manifest.json` says. It ends with a SHA-256 of its own, so that no byte of it changes unseen.

    Args:
        format: of checkpoints; another one is not read.
        rectiflow: the version that wrote it.
        torch: its version of torch, whose own format the files are in.
        step: steps done.
        world: how many processes wrote it; any other number may read it.
        metric: smaller is better; None if it was not measured or not finite.
        regular: whether a run that is never stopped has it too; None is yes, in those of earlier versions.
        owed: whether the run was stopped before it did what was due after this step; None is no.
        files: every file but the manifest, by name.
    """

    format: Literal[1] = FORMAT
    rectiflow: str
    torch: str
    step: int = Field(ge=0)
    world: int = Field(ge=1)
    metric: float | None
    regular: bool | None = None
    owed: bool | None = None
    files: dict[str, Entry]

    @classmethod
    def now(cls, step: int, metric: float | None, regular: bool, owed: bool, files: Mapping[str, Entry]) -> "Manifest":
        """The manifest of what has just been written by all processes of this job."""
        return cls(
            rectiflow=version("rectiflow"),
            torch=str(torch.__version__),
            step=step,
            world=ranks.world(),
            metric=metric if metric is not None and math.isfinite(metric) else None,
            regular=regular,
            owed=owed or None,
            files=dict(sorted(files.items())),
        )

    def text(self) -> str:
        """The text of the file."""
        later = {name for name in ("regular", "owed") if getattr(self, name) is None}
        values = self.model_dump(mode="json", exclude=later)
        return json.dumps({**values, "sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        InputError: there is none, it is torn or altered, or of another format; the message is a clause without a name.
        OSError: it cannot be read now; nothing is proven of it.
    """
    try:
        text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"it has no {MANIFEST_NAME}, so it was never finished") from error
    except UnicodeDecodeError as error:
        raise InputError(f"its {MANIFEST_NAME} is torn or altered") from error
    try:
        values = json.loads(text)
        values.pop("sha256")
        other = values["format"] if isinstance(values["format"], int) and values["format"] != FORMAT else None
        manifest = None if other is not None else Manifest.model_validate(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"its {MANIFEST_NAME} is torn or altered") from error
    if manifest is None:
        raise InputError(f"it is of format {other}, and this version of rectiflow reads format {FORMAT}")
    if manifest.text() != text:
        raise InputError(f"its {MANIFEST_NAME} is torn or altered")
    return manifest


def first_damage(folder: Path, files: Iterable[tuple[str, Entry]]) -> str:
    """What is wrong with the first of these files that is not as it was written; empty if all are.

    Sizes, which cost nothing, are compared before any file is read.

    Raises:
        OSError: one cannot be read now; nothing is proven of it.
    """
    files = list(files)
    for name, entry in files:
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != entry.size:
            return f"{name} has {size} bytes of the {entry.size} written"
    for name, entry in files:
        if sha256(folder / name) != entry.sha256:
            return f"{name} is altered: its SHA-256 is not the one written"
    return ""
