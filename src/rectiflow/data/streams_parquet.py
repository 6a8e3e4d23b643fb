"""Shards that are parquet files: their footers, and their row groups read where they lie.

A row group is what can be read of such a file; those next to one another that are small make a piece together.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from rectiflow.base.errors import InputError, unknown
from rectiflow.data.config import DataConfig
from rectiflow.data.shards import picture_field
from rectiflow.data.streams_remote import opened, patiently, shown
from rectiflow.data.streams_scan import Scan, label_of, wants

_PIECE = 2**24  # bytes of row groups that are read together, unless one has more


def scan_parquet(url: str, config: DataConfig) -> Scan:
    """Look through a parquet file: its footer, the labels, and with `data.check=decode` every picture.

    Raises:
        InputError: it is none, cannot be read, holds no pictures, or lacks a column that is asked for.
    """

    def scan() -> Scan:
        with opened(url) as file:
            try:
                parquet = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise InputError(f"{shown(url)} is no whole parquet file; mend it, or take it away.") from error
            return _scan(url, parquet, config)

    return patiently(url, scan)


def read_piece(url: str, groups: range, picture: str, caption: str) -> pa.Table:
    """The rows of some row groups: columns `picture`, bytes, and `caption`; the one whose name is empty is left out.

    Raises:
        InputError: they cannot be read, or are others than when the shard was looked through.
    """

    def read() -> pa.Table:
        with opened(url) as file:
            parquet = pq.ParquetFile(file)
            return _columns(parquet, groups, picture, caption)

    return patiently(url, read)


def _scan(url: str, parquet: pq.ParquetFile, config: DataConfig) -> Scan:
    schema, metadata = parquet.schema_arrow, parquet.metadata
    picture = picture_field(schema)
    if picture is None:
        raise InputError(
            f"{shown(url)} holds no pictures; expected a column of bytes, or of {{bytes, path}}. Its columns: "
            f"{', '.join(schema.names)}."
        )
    labelled = config.labels not in ("folders", "none")
    others = sorted(set(schema.names) - {picture})
    if labelled and config.labels not in others:
        raise unknown(f"column of {shown(url)} for data.labels", config.labels, ["folders", "none", *others])
    if config.caption != DataConfig().caption and config.caption not in others:
        raise unknown(f"column of {shown(url)} for data.caption", config.caption, others)
    caption = config.caption if config.caption in others else ""
    scan = Scan("parquet", metadata.num_rows, picture=picture, caption=caption)
    if not scan.rows:
        scan.notes.append("a parquet file without rows")
    scan.pieces = list(_pieces(metadata, {picture, caption}))
    if labelled:
        scan.labels = list(_labels(parquet, config.labels))
    row = 0
    for group in range(metadata.num_row_groups):
        if not wants(row, config):
            break
        table = _columns(parquet, range(group, group + 1), picture, "")
        for value in table.column("picture"):
            if wants(row, config):
                scan.look(row, value.as_py(), config)
            row += 1
    return scan


def _pieces(metadata: pq.FileMetaData, columns: set[str]) -> Iterator[tuple[int, int, int, int, int]]:
    first, rows, group, size = 0, 0, 0, 0
    for number in range(metadata.num_row_groups):
        part = metadata.row_group(number)
        chunks = (part.column(i) for i in range(part.num_columns))
        more = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
        if rows and size + more > _PIECE:
            yield first, rows, group, number - group, size
            first, rows, group, size = first + rows, 0, number, 0
        rows, size = rows + part.num_rows, size + more
    if rows:
        yield first, rows, group, metadata.num_row_groups - group, size


def _labels(parquet: pq.ParquetFile, column: str) -> Iterator[str | None]:
    names = _class_names(parquet.schema_arrow, column)
    for batch in parquet.iter_batches(columns=[column], use_threads=False):
        for value in batch.column(0).to_pylist():
            if names and isinstance(value, int):
                yield names[value] if 0 <= value < len(names) else None  # the hub marks a missing label by −1
            else:
                yield label_of(value)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names that `datasets` wrote for a column of numbers."""
    try:
        kept = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in kept["info"]["features"][column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _columns(parquet: pq.ParquetFile, groups: range, picture: str, caption: str) -> pa.Table:
    struct = bool(picture) and pa.types.is_struct(parquet.schema_arrow.field(picture).type)
    asked = [f"{picture}.bytes" if struct else picture] * bool(picture) + [caption] * bool(caption)
    table = parquet.read_row_groups(list(groups), columns=asked, use_threads=False)
    columns: dict[str, Any] = {}
    if picture:
        held = table.column(picture)
        columns["picture"] = pc.struct_field(held, "bytes") if struct else held
    if caption:
        columns["caption"] = table.column(caption)
    return pa.table(columns)
