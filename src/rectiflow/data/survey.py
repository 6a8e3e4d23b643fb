"""What lies in a folder of pictures: found before training starts, and nothing dropped in silence."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectiflow.base.errors import InputError
from rectiflow.data.captions import captions_of, sidecar
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable
from rectiflow.data.film_frames import FILMS
from rectiflow.data.metadata import METADATA, absent, check_columns, read_metadata
from rectiflow.data.shards import image_column, is_inside, without_rows
from rectiflow.data.shards import rows as rows_inside

EXTENSIONS = frozenset(
    f".{name}"
    for names in ("png jpg jpeg jpe jfif webp bmp gif tif tiff", "ppm pgm pbm pnm tga ico jp2 avif")
    for name in names.split()
)
NOT_A_PICTURE = "not a picture by its name"
EMPTY_SHARD = "a parquet file without rows"
NOT_A_CLIP = "neither a clip nor a picture by its name"
_TRAINING = frozenset({"train", "training"})
_HELD_OUT = frozenset({"val", "valid", "validation", "test", "testing", "eval", "dev", "held_out"})


@dataclass(frozen=True)
class Entry:
    """One picture as the folder presents it.

    Args:
        path: relative to the folder; for those inside a parquet file see `shards`.
        label: name of its class; None for none.
        captions: its captions.
        held_out: by the folder it lies in; None where the folder does not say.
    """

    path: str
    label: str | None
    captions: tuple[str, ...]
    held_out: bool | None


@dataclass
class Survey:
    """What was found.

    Args:
        entries: the pictures, in the order of their paths.
        skipped: (path, why) of each file that is none, or is left out.
        noted: (path, what) of each row and caption that was not taken as it is.
        without_row: pictures that a metadata file does not name.
        columns: of the metadata.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list)
    without_row: int = 0
    columns: set[str] = field(default_factory=set)

    def reasons(self) -> list[tuple[str, int, str]]:
        """(why, how many, the first of them) for each reason to skip."""
        return _counted(self.skipped)

    def notes(self) -> list[tuple[str, int, str]]:
        """(what, how many, the first of them) of what is noted."""
        return _counted(self.noted)


def _counted(told: Sequence[tuple[str, str]]) -> list[tuple[str, int, str]]:
    counts = Counter(why for _, why in told)
    first = {why: path for path, why in reversed(told)}
    return [(why, count, first[why]) for why, count in counts.most_common()]


def survey(config: DataConfig) -> Survey:
    """List the pictures of `config.dir`, and its films if `config.frames` > 1, with their classes and captions.

    Classes are the folders that pictures lie in. Folders named train and val, validation or test at the top are parts,
    not classes, if nothing else lies beside them. A `metadata` file at the top gives captions and other columns.

    Raises:
        InputError: there is no such folder, it cannot be read, or its metadata cannot.
    """
    root = Path(config.dir)
    if not config.dir:
        raise InputError("expected a folder of pictures: --data DIR.")
    if not root.is_dir():
        raise InputError(f"no folder at {root}; expected a folder of pictures after --data.")
    found = Survey()
    files = list(_walk(root, found))
    taken = EXTENSIONS | FILMS if config.frames > 1 else EXTENSIONS
    pictures = [path for path in files if Path(path).suffix.lower() in taken]
    shards = [path for path in files if _is_shard(root, path, found)]
    tables = [path for path in files if Path(path).name in METADATA and path not in shards]
    expected = {*pictures, *shards, *tables, *(str(Path(path).with_suffix(".txt")) for path in pictures)}
    expected |= {path for path, _ in found.skipped}  # told already
    stray = NOT_A_CLIP if config.frames > 1 else NOT_A_PICTURE
    found.skipped += [(path, stray) for path in files if path not in expected]
    rows, found.columns = read_metadata(config, tables, found.noted)
    inside = {f"{path}#{number}": row for path in shards for number, row in enumerate(rows_inside(root / path))}
    found.columns |= {column for row in inside.values() for column in row}
    check_columns(config, found.columns)
    found.skipped += [(path, absent(path)) for path in sorted(set(rows) - set(pictures))]
    parts = _parts([*pictures, *inside])
    classed = any(len(_inner(path, parts)) > 1 for path in pictures)
    for path in [*pictures, *inside]:
        row = inside[path] if path in inside else rows[path].values if path in rows else {}
        folders = [] if path in inside else _inner(path, parts)[:-1]
        label, missing = _label(config, row, folders, classed)
        if missing:
            found.skipped.append((path, missing))
            continue
        if path in rows and rows[path].captions:
            captions = rows[path].captions
        else:
            captions, problems = captions_of(row.get(config.caption)) if path in inside else sidecar(root / path)
            found.noted += [(path, problem) for problem in problems]
        found.entries.append(Entry(path, label, tuple(captions), parts.get(_top(path))))
    found.without_row = sum(path not in rows for path in pictures) if rows else 0
    return found


def _is_shard(root: Path, path: str, found: Survey) -> bool:
    """Whether a file is a parquet file with pictures inside."""
    if Path(path).suffix.lower() != ".parquet":
        return False
    try:
        if image_column(root / path) is None:
            return False
        if not without_rows(root / path):
            return True
        if Path(path).name not in METADATA:
            found.skipped.append((path, EMPTY_SHARD))
        return False
    except Unusable as problem:
        if Path(path).name not in METADATA:
            found.skipped.append((path, str(problem)))
        return False


def _label(config: DataConfig, row: Mapping[str, Any], folders: Sequence[str], classed: bool) -> tuple[str | None, str]:
    """The name of a picture's class, and why it has none though it should."""
    if config.labels == "none" or (config.labels == "folders" and not classed):
        return None, ""
    if config.labels == "folders":
        return "/".join(folders), "" if folders else "lies outside the class folders"
    value = row.get(config.labels)
    missing = value is None or value == "" or value != value  # NaN, as tables have it for an empty cell
    return (None, "no label in the metadata") if missing else (str(value), "")


def _walk(root: Path, found: Survey) -> Iterator[str]:
    """Relative paths of all files below, sorted; hidden ones left out, links to folders followed once."""
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        if error.filename == str(root):
            raise InputError(f"cannot read {root}: {error.strerror}.")
        found.skipped.append((os.path.relpath(error.filename, root), "folder cannot be read"))

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            path = Path(folder, name).relative_to(root).as_posix()
            if (shown := os.fsencode(path).decode(errors="replace")) != path:
                found.skipped.append((shown, "its name is not UTF-8"))
            elif _never_ends(Path(folder, name)):
                found.skipped.append((path, "a pipe or a device, not a file"))
            else:
                yield path


def _never_ends(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing, say, which is told when it is read
        return False


def _parts(pictures: Sequence[str]) -> dict[str, bool]:
    """Which top folders are parts: name → held out. Empty unless all of them are, with one to train on."""
    tops = {_top(path) for path in pictures}
    named = {top for top in tops if top.lower() in _TRAINING | _HELD_OUT}
    if tops != named or not any(top.lower() in _TRAINING for top in tops):
        return {}
    return {top: top.lower() in _HELD_OUT for top in tops}


def _top(path: str) -> str:
    """The folder at the top, if any; of `data/test-00000-of-00002.parquet` and `data/test/0.parquet` it is "test"."""
    pieces = path.split("/")
    if not is_inside(path):
        return pieces[0] if pieces[1:] else ""
    folder = pieces[-2] if pieces[1:] else ""
    return folder if folder.lower() in _TRAINING | _HELD_OUT else re.split(r"[-_.]", pieces[-1])[0]


def _inner(path: str, parts: Mapping[str, bool]) -> list[str]:
    """Folders and name of a path, below its part."""
    pieces = path.split("/")
    return pieces[1:] if pieces[0] in parts else pieces
