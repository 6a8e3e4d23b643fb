"""Which samples lie in which shards, and where: made once, kept in the run, mapped from disk.

INDEX/shards.json       the shards, and what holds for all of them; written last
INDEX/pieces.i64        for each piece: shard, first row in it, rows, row group, row groups, to train on, held out
INDEX/rows.u8           for each row of all shards: left out, to train on, or held out
INDEX/spans.i64         for each row of a tar: see `Scan.spans`
INDEX/train.i64, held_out.i64   the labels of these rows, if there are classes
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from pydantic import ValidationError

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.data.streams_remote import Content, content_of, shown

FORMAT = 1
NOTE, PIECES, ROWS, SPANS = "shards.json", "pieces.i64", "rows.u8", "spans.i64"
TRAIN, HELD_OUT = 1, 2
LABELS = {TRAIN: "train.i64", HELD_OUT: "held_out.i64"}
COLUMNS = 7  # of the pieces
_AT_ONCE = 16


class Shard(Config):
    """One file.

    Args:
        url: where it lies.
        kind: parquet or tar.
        size: in bytes.
        tag: see `Content`.
        rows: samples in it.
        picture: column of the pictures.
        caption: see `Scan.caption`.
        spans: row of the file of spans at which its own begin.
    """

    url: str
    kind: Literal["parquet", "tar"]
    size: int
    tag: str
    rows: int
    picture: str = ""
    caption: str = ""
    spans: int = 0

    def check(self) -> None:
        """Nothing, if the file is what it was.

        Raises:
            InputError: it is missing, or another one now.
        """
        found = content_of(self.url)
        if found != Content(self.size, self.tag):
            what = f"{found.size:,} bytes" if found.size != self.size else "other content"
            expected = f"{self.size:,}" if found.size != self.size else "what the run began with"
            raise InputError(
                f"{shown(self.url)} has changed: it has {what}, expected {expected}; restore it and go on with "
                "--resume, or begin another run."
            )


class Note(Config):
    """What holds for all shards.

    Args:
        format: of the index.
        shards: in the order of their rows.
        window: pieces that are mixed together.
        classes: name of each label.
        grey: whether no picture that was looked into has colour.
        digest: of the shards' contents and of which rows are in which part.
    """

    format: int
    shards: tuple[Shard, ...]
    window: int
    classes: tuple[str, ...] = ()
    grey: bool = False
    digest: str = ""


@final
class Index:
    """The samples of all shards. A part's rows are numbered through the pieces, other parts' left out.

    Args:
        folder: where the index lies.

    Attributes:
        note: what holds for all shards.
        pieces: int64 P×7, see above.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.note = Note.model_validate(json.loads((folder / NOTE).read_text(encoding="utf-8")))
            if self.note.format > FORMAT:
                raise InputError(f"{folder} has format {self.note.format}, of a later release; upgrade rectiflow.")
            self.pieces = mapped(folder / PIECES, np.int64).reshape(-1, COLUMNS)
            self._state = mapped(folder / ROWS, np.uint8)
            self._spans = mapped(folder / SPANS, np.int64).reshape(-1, 5)
        except InputError:
            raise
        except (OSError, ValueError, ValidationError) as error:
            raise InputError(f"{folder} cannot be read; restore it, or begin another run.") from error
        rows = np.array([0, *(shard.rows for shard in self.note.shards)]).cumsum()
        if rows[-1] != len(self._state):
            raise InputError(f"{folder} is cut off; restore it, or begin another run.")
        self._starts = rows[self.pieces[:, 0]] + self.pieces[:, 1]
        self._ends = {part: self.sizes(part).cumsum() for part in LABELS}

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.folder,)

    def sizes(self, part: int) -> np.ndarray:
        """Rows of a part in each piece."""
        return self.pieces[:, 4 + part]

    def labels(self, part: int) -> np.ndarray | None:
        """int64, the label of each row of a part, −1 for none; what is written there stays in memory. None without
        classes.
        """
        return mapped(self.folder / LABELS[part], np.int64) if self.note.classes else None

    def shard(self, piece: int) -> Shard:
        """The file in which a piece lies."""
        return self.note.shards[int(self.pieces[piece, 0])]

    def located(self, part: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece of each row of a part, and the row's number within the piece."""
        ends = self._ends[part]
        numbers = np.searchsorted(ends, rows, side="right")
        inside = np.empty_like(rows)
        for number in np.unique(numbers).tolist():
            which, start = numbers == number, int(self._starts[number])
            members = np.flatnonzero(self._state[start : start + int(self.pieces[number, 2])] == part)
            inside[which] = members[rows[which] - (ends[number] - len(members))]
        return numbers, inside

    def spans(self, piece: int, inside: np.ndarray) -> np.ndarray:
        """`Scan.spans` of rows of a piece."""
        return self._spans[self.shard(piece).spans + int(self.pieces[piece, 1]) + inside]

    def named(self, part: int, row: int) -> tuple[Shard, str]:
        """The shard of a row, and how the row is shown: its shard and its number in there."""
        numbers, inside = self.located(part, np.array([row]))
        shard = self.shard(int(numbers[0]))
        return shard, f"{shown(shard.url)}#{int(self.pieces[numbers[0], 1] + inside[0])}"

    def check(self) -> None:
        """Nothing, if every shard is what it was.

        Raises:
            InputError: one is missing, or another one now.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(Shard.check, self.note.shards):
                pass


def mapped(path: Path, kind: Any) -> np.ndarray:
    """The numbers in a file, mapped from disk; what is written into them stays in memory."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="c")
