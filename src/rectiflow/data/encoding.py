"""A folder of latents while it is being written: who writes there, and what is whole already."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.base.files import unwritable
from rectiflow.base.ranks import first_then_others
from rectiflow.data.latents import MANIFEST, Shard, read_json, refuse_others

_LOCK = ".lock"
_ASIDE = r"\.(train|held_out|stills|latents).*\.tmp"
_OURS = re.compile(rf"(train|held_out|stills)-\d{{5,}}\.(arrow|json)|{re.escape(MANIFEST)}|{re.escape(_LOCK)}|{_ASIDE}")


class Sums(Config):
    """Over the rows and places of a shard: how many; and for each latent channel Σm, Σm² and Σs²."""

    count: int = 0
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()


class Note(Config):
    """What is written down beside each shard, when it is whole.

    Args:
        format: of the folder.
        fingerprint: of what is encoded.
        shard_size: pictures in a shard, unless it is the last.
        shape: 2C′, h, w, or of clips 2C′, T′, h, w.
        shard: the file.
        sums: of its latents.
    """

    format: int
    fingerprint: dict[str, str]
    shard_size: int
    shape: tuple[int, ...]
    shard: Shard
    sums: Sums


def notes_of(folder: Path, fingerprint: dict[str, str]) -> dict[str, Note]:
    """The notes of an encoding that was cut off, by the name of their shards; those that are damaged left out."""
    notes = {}
    for path in sorted(folder.glob("*-*.json")):
        values = read_json(path)
        try:
            note = Note.model_validate(values)
        except ValidationError:
            continue
        refuse_others(folder, note.fingerprint, fingerprint)
        notes[path.stem] = note
    return notes


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of an encoding.

    Raises:
        InputError: it holds something else, cannot be written, or another process holds it.
    """
    lock = None
    with first_then_others() as mine:
        if mine:
            lock = _acquired(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(folder: Path) -> FileLock:
    strange = folder.exists() and (
        not folder.is_dir() or any(not _OURS.fullmatch(path.name) for path in folder.iterdir())
    )
    if strange:
        raise InputError(f"{folder} is there already and no folder of latents; choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is encoding in {folder}; wait for it, or choose another folder.") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    for path in folder.iterdir():
        if re.fullmatch(_ASIDE, path.name):  # of a process that was killed as it wrote
            path.unlink()
    return lock
