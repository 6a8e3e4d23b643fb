"""The tables beside pictures, metadata.csv, .jsonl or .parquet: a row or several for each picture."""

import codecs
import glob
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectiflow.base.errors import InputError, unknown
from rectiflow.data.captions import captions_of
from rectiflow.data.config import DataConfig

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """What tables say of a picture.

    Args:
        values: by column, of the first row that names it.
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
        for name, values in _rows(Path(config.dir, file)):
            columns |= set(values)
            if name is None:
                noted.append((file, "row without file_name: left out"))
                continue
            path = (Path(file).parent / name).as_posix()
            captions, problems = captions_of(values.get(config.caption))
            noted += [(path, problem) for problem in problems]
            if path not in rows:
                rows[path] = Row(values, captions)
                continue
            first = rows[path]
            new = [caption for caption in captions if caption not in first.captions]
            first.captions.extend(new)
            if values.get(config.labels) != first.values.get(config.labels):
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


def _rows(path: Path) -> list[tuple[str | None, dict[str, Any]]]:
    """Rows of a file as `datasets` reads them, each with the path of its picture from the file's folder."""
    from datasets import Image, load_dataset

    # imagefolder itself turns folders into splits and drops labels and rows: only its reading of metadata is used.
    try:
        with tempfile.TemporaryDirectory() as cache:
            readable = _in_utf8(path, Path(cache))
            table = load_dataset(
                "imagefolder",
                data_files={"train": [glob.escape(str(readable))]},
                split="train",
                drop_labels=True,
                drop_metadata=False,
                cache_dir=cache,
            )
            rows = list(table.cast_column("image", Image(decode=False)))
    except InputError:
        raise
    except Exception as error:  # the reader lets through whatever its parsers raise
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(
            f"{path} cannot be read as metadata ({reason[0] if reason else type(error).__name__}); expected rows with "
            "file_name and, say, text."
        ) from error
    pictures = [row.pop("image") for row in rows]
    if not all(picture is None or Path(picture["path"]).is_relative_to(readable.parent) for picture in pictures):
        raise InputError(f"{path} has a column image, which stands for the pictures themselves here; rename it.")
    return [(_name(picture, readable.parent), row) for picture, row in zip(pictures, rows, strict=True)]


def _name(image: dict[str, Any] | None, folder: Path) -> str | None:
    return None if image is None else Path(image["path"]).relative_to(folder).as_posix()


def _in_utf8(path: Path, aside: Path) -> Path:
    """The file itself, or a copy in which U+FFFD stands for what is not UTF-8: parsers refuse the whole file for it.

    Raises:
        InputError: it is UTF-16.
    """
    if path.suffix == ".parquet":
        return path.absolute()
    content = path.read_bytes()
    if content.startswith(_BOMS):
        raise InputError(f"{path} is in UTF-16, expected UTF-8; save it again in UTF-8.")
    text = content.decode("utf-8-sig", errors="replace")
    if text.encode() == content:
        return path.absolute()
    copy = aside / path.name
    copy.write_text(text, encoding="utf-8", newline="")
    return copy
