"""The tables beside pictures, metadata.csv, .jsonl or .parquet: a row or several for each picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectiflow.base.errors import InputError, unknown
from rectiflow.data.captions import captions_of
from rectiflow.data.config import DataConfig
from rectiflow.data.metadata_files import lines

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NOT_FOUND = "named in the metadata, not found"
OUTSIDE = "named in the metadata by an absolute path or with '..', expected one from its own folder"


@dataclass(frozen=True)
class Row:
    """What tables say of a picture.

    Args:
        values: of the column that `data.labels` names, if it is one, in the first row that names it.
        captions: of all rows that name it, in their order.
    """

    values: dict[str, Any]
    captions: list[str]


def read_metadata(
    config: DataConfig, files: Sequence[str], noted: list[tuple[str, str]]
) -> tuple[dict[str, Row], set[str]]:
    """The rows of metadata files by the path of their picture, and the names of their columns.

    Args:
        config: the folder, and which columns count.
        files: the metadata files, relative to it.
        noted: where (path, what) is put of each row and caption that was not taken as it is.

    Raises:
        InputError: a file cannot be read as such.
    """
    rows: dict[str, Row] = {}
    columns: set[str] = set()
    for file in files:
        for where, values, problem in lines(Path(config.dir, file)):
            name = values.pop("file_name", None)
            columns |= set(values)
            if problem or not name or not isinstance(name, str):
                noted.append((f"{file}, {where}", problem or "row without file_name: left out"))
                continue
            path = (Path(file).parent / name).as_posix()
            captions, problems = captions_of(values.get(config.caption))
            noted += [(path, problem) for problem in problems]
            label = {config.labels: values[config.labels]} if config.labels in values else {}
            if path not in rows:
                rows[path] = Row(label, captions)
                continue
            first = rows[path]
            new = [caption for caption in captions if caption not in first.captions]
            first.captions.extend(new)
            if label.get(config.labels) != first.values.get(config.labels):
                noted.append((path, f"named twice in the metadata, with another {config.labels}: the first counts"))
            elif not new:
                noted.append((path, "named twice in the metadata: kept once"))
    return rows, columns


def check_columns(config: DataConfig, columns: Iterable[str]) -> None:
    """Nothing, if the columns that are asked for are there.

    Raises:
        InputError: one is not.
    """
    known = sorted(columns)
    if config.labels not in ("folders", "none"):
        if not known:
            raise InputError(
                f"data.labels={config.labels} names a column, but there is no metadata file ({', '.join(METADATA)})."
            )
        if config.labels not in known:
            raise unknown("column for data.labels", config.labels, ["folders", "none", *known])
    if config.caption != DataConfig().caption and config.caption not in known:
        if not known:
            raise InputError(
                f"data.caption={config.caption} names a column, but there is no metadata file ({', '.join(METADATA)})."
            )
        raise unknown("column for data.caption", config.caption, known)


def absent(path: str) -> str:
    """Why a row's picture is not among those of the folder."""
    return OUTSIDE if Path(path).is_absolute() or ".." in Path(path).parts else NOT_FOUND
