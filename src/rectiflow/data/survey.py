"""What lies in a folder of pictures: found before training starts, and nothing dropped in silence."""

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectiflow.base.errors import InputError, unknown
from rectiflow.data.config import DataConfig

EXTENSIONS = frozenset(
    f".{name}"
    for names in ("png jpg jpeg jpe jfif webp bmp gif tif tiff", "ppm pgm pbm pnm tga ico jp2 avif")
    for name in names.split()
)
NOT_A_PICTURE = "not a picture by its name"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TRAINING = frozenset({"train", "training"})
_HELD_OUT = frozenset({"val", "valid", "validation", "test", "testing", "eval", "dev", "held_out"})


@dataclass(frozen=True)
class Entry:
    """One picture as the folder presents it.

    Args:
        path: relative to the folder.
        label: name of its class; None for none.
        caption: its caption; empty for none.
        held_out: by the folder it lies in; None where the folder does not say.
    """

    path: str
    label: str | None
    caption: str
    held_out: bool | None


@dataclass
class Survey:
    """What was found.

    Args:
        entries: the pictures, in the order of their paths.
        skipped: (path, why) of each file that is none, or is left out.
        without_row: pictures that a metadata file does not name.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    without_row: int = 0

    def reasons(self) -> list[tuple[str, int, str]]:
        """(why, how many, the first of them) for each reason."""
        counts = Counter(why for _, why in self.skipped)
        first = {why: path for path, why in reversed(self.skipped)}
        return [(why, count, first[why]) for why, count in counts.most_common()]


def survey(config: DataConfig) -> Survey:
    """List the pictures of `config.dir` with their classes and captions.

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
    pictures = [path for path in files if Path(path).suffix.lower() in EXTENSIONS]
    expected = {*pictures, *(str(Path(path).with_suffix(".txt")) for path in pictures)}
    found.skipped += [(p, NOT_A_PICTURE) for p in files if p not in expected and Path(p).name not in METADATA]
    rows = _metadata(root, files, found)
    if config.labels not in ("folders", "none"):
        _check_column(config.labels, rows)
    found.skipped += [(path, "named in the metadata, not found") for path in sorted(set(rows) - set(pictures))]
    parts = _parts(pictures)
    classed = any(len(_inner(path, parts)) > 1 for path in pictures)
    for path in pictures:
        row = rows.get(path, {})
        label, missing = _label(config, row, _inner(path, parts)[:-1], classed)
        if missing:
            found.skipped.append((path, missing))
            continue
        caption = str(row.get(config.caption) or "") or _sidecar(root, path)
        found.entries.append(Entry(path, label, caption, parts.get(path.split("/")[0])))
    found.without_row = sum(path not in rows for path in pictures) if rows else 0
    return found


def _label(config: DataConfig, row: Mapping[str, Any], folders: Sequence[str], classed: bool) -> tuple[str | None, str]:
    """The name of a picture's class, and why it has none though it should."""
    if config.labels == "none" or (config.labels == "folders" and not classed):
        return None, ""
    if config.labels == "folders":
        return "/".join(folders), "" if folders else "lies outside the class folders"
    value = row.get(config.labels)
    return (None, "no label in the metadata") if value in (None, "") else (str(value), "")


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
            if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini"):
                yield Path(folder, name).relative_to(root).as_posix()


def _parts(pictures: Sequence[str]) -> dict[str, bool]:
    """Which top folders are parts: name → held out. Empty unless all of them are, with one to train on."""
    tops = {path.split("/")[0] if "/" in path else "" for path in pictures}
    named = {top for top in tops if top.lower() in _TRAINING | _HELD_OUT}
    if tops != named or not any(top.lower() in _TRAINING for top in tops):
        return {}
    return {top: top.lower() in _HELD_OUT for top in tops}


def _inner(path: str, parts: Mapping[str, bool]) -> list[str]:
    """Folders and name of a path, below its part."""
    pieces = path.split("/")
    return pieces[1:] if pieces[0] in parts else pieces


def _sidecar(root: Path, path: str) -> str:
    try:
        return (root / path).with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _metadata(root: Path, files: Sequence[str], found: Survey) -> dict[str, dict[str, Any]]:
    """Rows of all metadata files by the path of their picture."""
    rows: dict[str, dict[str, Any]] = {}
    for path in (path for path in files if Path(path).name in METADATA):
        for row in _read_rows(root / path):
            name = Path(row.pop("image")["path"]).relative_to(root.absolute()).as_posix()
            if name in rows:
                found.skipped.append((name, "named twice in the metadata"))
            rows[name] = row
    return rows


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metadata file as `datasets` reads them, the paths of the pictures under `image`."""
    from datasets import Image, load_dataset

    # imagefolder itself turns folders into splits and drops labels and rows: only its reading of metadata is used.
    try:
        with tempfile.TemporaryDirectory() as cache:
            table = load_dataset(
                "imagefolder",
                data_files={"train": [glob.escape(str(path.absolute()))]},
                split="train",
                drop_labels=True,
                drop_metadata=False,
                cache_dir=cache,
            )
            return list(table.cast_column("image", Image(decode=False)))
    except Exception as error:  # the reader lets through whatever its parsers raise
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(
            f"{path} cannot be read as metadata ({reason[0] if reason else type(error).__name__}); expected rows with "
            "file_name and, say, text."
        ) from error


def _check_column(name: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    if not rows:
        raise InputError(f"data.labels={name} names a column, but there is no metadata file ({', '.join(METADATA)}).")
    columns = {column for row in rows.values() for column in row}
    if name not in columns:
        raise unknown("column for data.labels", name, ["folders", "none", *sorted(columns)])
