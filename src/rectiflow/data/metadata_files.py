"""The rows of one metadata file, as they are written: a cell of csv is text, whatever it looks like."""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow.parquet as pq  # type: ignore[import-untyped]

from rectiflow.base.errors import InputError

NO_JSON = "row that is no JSON object: left out"
NO_CSV = "row with text after its closing quote, or a quote never closed: left out"
TOO_MANY = "row of more cells than the header, by a comma without quotes perhaps: left out"
_NAME = "file_name"
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST = 2**31 - 1  # characters of a cell; csv's own limit is 131,072
_ROWS = 1024


class Line(NamedTuple):
    """A row of a file.

    Args:
        where: its place, in words.
        values: by column.
        problem: why it gives none; empty if it does.
    """

    where: str
    values: dict[str, Any]
    problem: str = ""


def lines(path: Path) -> Iterator[Line]:
    """The rows of a .csv, .jsonl or .parquet file one by one, in UTF-8; U+FFFD stands for what is not.

    Raises:
        InputError: no row can be read, none has a file_name, or the file is UTF-16 or damaged.
    """
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    columns: set[str] = set()
    broken: Line | None = None
    try:
        for line in read(path):
            if line.problem:
                broken = broken or line
            columns |= set(line.values)
            yield line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    if not columns:
        raise _unreadable(path, f"{broken.where}: {broken.problem}" if broken else "it has no rows")
    if _NAME not in columns:
        raise _unreadable(path, f"no column {_NAME}, but {', '.join(sorted(columns)[:8])}")


def _unreadable(path: Path, why: str) -> InputError:
    such = {".csv": "a header, then rows", ".jsonl": "a JSON object in each line", ".parquet": "rows"}[path.suffix]
    return InputError(f"{path} cannot be read as metadata ({why}); expected {such} with {_NAME} and, say, text.")


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        if file.read(2) in _BOMS:
            raise InputError(f"{path} is in UTF-16, expected UTF-8; save it again in UTF-8.")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _csv(path: Path) -> Iterator[Line]:
    before = csv.field_size_limit(_LONGEST)
    try:
        with _opened(path) as file:
            rows = csv.reader(file, strict=True)
            names: list[str] = []
            while True:
                number = rows.line_num + 1
                where = f"line {number}"
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    if not names or rows.line_num > number:  # what followed may have been taken for a part of it
                        raise _unreadable(path, f"a quote that opens in {where} is not closed before text") from error
                    yield Line(where, {}, NO_CSV)
                    continue
                if cells is None:
                    return
                if not any(cells):
                    continue
                if not names:
                    names = [cell.strip() for cell in cells]
                elif any(cells[len(names) :]):
                    yield Line(where, {}, TOO_MANY)
                else:
                    # Of two columns of one name the first counts; a column without a name is none.
                    pairs = reversed(list(zip(names, cells, strict=False)))
                    yield Line(where, {name: cell for name, cell in pairs if name})
    finally:
        csv.field_size_limit(before)


def _jsonl(path: Path) -> Iterator[Line]:
    with _opened(path) as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text, strict=False)
                if "\\ud" in text.lower():  # half a character, written as an escape
                    whole = json.dumps(values, ensure_ascii=False).encode(errors="surrogatepass")
                    values = json.loads(whole.decode(errors="replace"))
            except (ValueError, RecursionError):
                values = None
            given = isinstance(values, dict)
            yield Line(f"line {number}", values if given else {}, "" if given else NO_JSON)


def _parquet(path: Path) -> Iterator[Line]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Line(f"row {number}", values)
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise _unreadable(path, f"it is no parquet file, or damaged after row {number}") from error
