"""Samples out of shards: row groups of parquet files, some of which are kept, and ranges of tars."""

import threading
from collections import OrderedDict
from typing import final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from rectiflow.data.captions import captions_of
from rectiflow.data.streams_index import Index
from rectiflow.data.streams_parquet import read_piece
from rectiflow.data.streams_remote import Span, read_spans
from rectiflow.data.streams_tar import caption_of

HELD = 2**29  # bytes of row groups that a process keeps, unless the last one alone has more
Sample = tuple[bytes | None, list[str]]
_Key = tuple[str, str, range, str, str]


def samples(index: Index, part: int, rows: np.ndarray, pictures: bool = True) -> list[Sample]:
    """The encoded picture and the captions of each row of a part (int64); without `pictures`, None for these.

    Raises:
        InputError: a shard cannot be read; one line that names it.
    """
    pieces, inside = index.located(part, rows)
    found: dict[int, Sample] = {}
    asked: dict[int, tuple[Span, Span, bool, str]] = {}
    for piece in np.unique(pieces).tolist():
        shard, which = index.shard(piece), np.flatnonzero(pieces == piece)
        if shard.kind == "tar":
            for i, row in zip(which.tolist(), index.spans(piece, inside[which]).tolist(), strict=True):
                start, length, text, size, in_json = row
                place = Span(shard.url, start, length), Span(shard.url, text, size)
                asked[i] = (*place, bool(in_json), shard.caption)
            continue
        group, groups = (int(number) for number in index.pieces[piece, 3:5])
        key = shard.url, shard.tag, range(group, group + groups), shard.picture if pictures else "", shard.caption
        table = _TABLES.get(key) if pictures or shard.caption else None
        found |= {i: _of_table(table, int(inside[i])) for i in which.tolist()}
    spans = [span for picture, text, *_ in asked.values() for span in (picture, text)[not pictures :] if span.length]
    content = dict(zip(spans, read_spans(spans), strict=True))
    for i, (picture, text, in_json, name) in asked.items():
        captions = caption_of(content[text], name, in_json) if text.length else []
        found[i] = (content.get(picture, b"") if pictures else None), captions
    return [found[i] for i in range(len(rows))]


def _of_table(table: pa.Table | None, row: int) -> Sample:
    if table is None:
        return None, []
    names = table.column_names
    picture = table.column("picture")[row].as_py() if "picture" in names else None
    return picture, captions_of(table.column("caption")[row].as_py())[0] if "caption" in names else []


@final
class _Tables:
    """The row groups that were read last; those that were not asked for the longest are let go."""

    def __init__(self) -> None:
        self._held: OrderedDict[_Key, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> pa.Table:
        """The rows of some row groups."""
        with self._lock:
            if key not in self._held:
                url, _, groups, picture, caption = key
                self._held[key] = read_piece(url, groups, picture, caption)
                while len(self._held) > 1 and sum(table.nbytes for table in self._held.values()) > HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]


_TABLES = _Tables()
