"""Pictures inside parquet files, as the hub keeps them: a column of {bytes, path}, and captions and labels beside it.

Picture i of a file is known as `FILE.parquet#i`. A file is unpacked once, by `datasets` into its own cache, and mapped
from there; the cache is renewed when the file changes.
"""

import glob
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from rectiflow.base.errors import InputError
from rectiflow.data.decode import Unusable

_PICTURE = re.compile(r"(.+\.parquet)#(\d+)", re.IGNORECASE)


def image_column(path: Path) -> str | None:
    """The first column of a parquet file that holds encoded pictures; None if there is none.

    Raises:
        Unusable: it is no parquet file.
    """
    try:
        schema = pq.read_schema(path)
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise Unusable("not a parquet file") from error
    return picture_field(schema)


def picture_field(schema: pa.Schema) -> str | None:
    """The first column that holds encoded pictures; None if there is none."""
    for field in schema:
        inside = {part.name: part.type for part in field.type} if pa.types.is_struct(field.type) else {}
        if _is_bytes(inside.get("bytes", pa.null())) or (_is_bytes(field.type) and "image" in field.name.lower()):
            return str(field.name)
    return None


def without_rows(path: Path) -> bool:
    """Whether a parquet file has none."""
    return bool(pq.read_metadata(path).num_rows == 0)


def is_inside(path: str) -> bool:
    """Whether this names a picture inside a parquet file."""
    return _PICTURE.fullmatch(path) is not None


def content(root: str, path: str) -> Path | bytes:
    """Where a picture is read from: its file, or its bytes.

    Raises:
        InputError: the parquet file is gone, or another one.
        Unusable: it holds no bytes of this picture.
    """
    match = _PICTURE.fullmatch(path)
    if match is None:
        return Path(root, path)
    file, row = Path(root, match[1]), int(match[2])
    table, column = _open(str(file.absolute()))
    if row >= len(table):
        raise InputError(f"{file} has changed: it has {len(table)} rows, expected more than {row}; restore it.")
    held = table[row][column]
    if held is None or held["bytes"] is None:
        raise Unusable("no bytes in its parquet file")
    return bytes(held["bytes"])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The other columns of a file, row by row; a class label under its name.

    Raises:
        InputError: it cannot be read.
    """
    from datasets import ClassLabel

    table, column = _open(str(path.absolute()))
    others = table.remove_columns(column)
    named = {name: kind for name, kind in others.features.items() if isinstance(kind, ClassLabel)}
    for row in others if others.column_names else ({} for _ in range(len(table))):
        # The hub marks a missing label by None or −1.
        yield row | {name: kind.int2str(row[name]) if _is_label(row[name]) else None for name, kind in named.items()}


def _is_label(value: int | None) -> bool:
    return value is not None and value >= 0


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@lru_cache(maxsize=1024)
def _open(path: str) -> tuple[Any, str]:
    """A file as `datasets` maps it, and which column holds its pictures."""
    from datasets import Image, load_dataset

    try:
        column = image_column(Path(path))
        assert column is not None
        table = load_dataset("parquet", data_files={"train": [glob.escape(path)]}, split="train")
        return table.cast_column(column, Image(decode=False)), column
    except Exception as error:  # the reader lets through whatever its parsers raise
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(
            f"{path} cannot be read ({reason[0] if reason else type(error).__name__}); mend it, or take it away. It is "
            "unpacked into the cache of Hugging Face datasets: HF_DATASETS_CACHE names another place."
        ) from error
