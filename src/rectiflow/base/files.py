"""Files that are whole or absent: written aside, flushed to disk, renamed; and their SHA-256."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rectiflow.base.errors import InputError


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_aside(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file aside, then put it in the place of `path`: a reader finds the old file or the new one.

    Raises:
        InputError: the file cannot be written; the old one is kept.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        flush_names(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all; see `write_aside`."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def aside_of(folder: Path) -> Path:
    """Where a folder is filled before it is renamed: hidden, so that nobody's own copy has the name."""
    return folder.with_name(f".{folder.name}.tmp")


def former_of(folder: Path) -> Path:
    """Where a folder lies for the moment in which another takes its place."""
    return folder.with_name(f".{folder.name}.old")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder aside, then put it in the place of `folder`.

    If `fill` fails, what stood at `folder` stays as it was. Between the two renames a crash leaves the former
    folder at `former_of` it; `recover_folder` puts it back.

    Raises:
        InputError: the disk is full or read-only (the message says that the former folder is kept).
    """
    aside = aside_of(folder)
    recover_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        put_folder(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        recover_folder(folder)
        raise unwritable(folder, error) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        recover_folder(folder)
        raise


def put_folder(aside: Path, folder: Path) -> None:
    """Put a folder that is complete in the place of `folder`, which it replaces: flushed to disk, then renamed.

    Both lie in the same folder. A crash leaves what stood there or what comes; see `recover_folder`.

    Raises:
        OSError: the disk's own; what stood there may lie at `former_of` it.
    """
    old = former_of(folder)
    _flush(aside)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    flush_names(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a replacement of `folder` that was cut off between its two renames."""
    old = former_of(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """The one line for a file that could not be written."""
    reason = error.strerror or str(error)
    return InputError(
        f"could not write {path}: {reason}. What was saved before is kept; free space or choose another place."
    )


def flush_names(folder: Path) -> None:
    """Flush to disk which files a folder has: without it a power cut may undo a rename that has been seen."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def _flush(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            flush_names(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
