"""Looking through shards before training: what there is, which rows are trained on, and why others are not."""

import atexit
import hashlib
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.files import unwritable, write_text
from rectiflow.base.randomness import Key
from rectiflow.data.config import DataConfig
from rectiflow.data.inventory import Report
from rectiflow.data.streams_index import (
    COLUMNS,
    FORMAT,
    HELD_OUT,
    LABELS,
    NOTE,
    PIECES,
    ROWS,
    SPANS,
    TRAIN,
    Note,
    Shard,
    mapped,
)
from rectiflow.data.streams_parquet import scan_parquet
from rectiflow.data.streams_read import HELD
from rectiflow.data.streams_remote import Content, content_of, expand, shown
from rectiflow.data.streams_scan import Scan
from rectiflow.data.streams_tar import scan_tar

_AT_ONCE = 8
_BLOCK = 2**20
_SCANS = {".parquet": scan_parquet, ".tar": scan_tar}
_NAMES = "names.i32"  # labels in the order in which their names were met


def survey_shards(config: DataConfig) -> tuple[Path, Report]:
    """Look through the shards of `config`.

    Returns:
        The folder of their index, gone when this process ends; and lines of what was found.

    Raises:
        InputError: shards that cannot be read or hold nothing to train on, or too much that cannot be used; one line.
    """
    urls = expand(config.shards)
    for url in urls:
        if PurePosixPath(url).suffix.lower() not in _SCANS:
            raise InputError(
                f"data.shards: {shown(url)} ends neither in .parquet nor in .tar; tars must be uncompressed, so that "
                "they can be read at random."
            )
    folder = Path(tempfile.mkdtemp(prefix="rectiflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with ExitStack() as stack, ThreadPoolExecutor(_AT_ONCE) as pool:
            survey = _Survey(config, folder, stack)
            for start in range(0, len(urls), _AT_ONCE):  # no more scans are held than are made at once
                some = urls[start : start + _AT_ONCE]
                for url, (content, scan) in zip(some, pool.map(lambda url: _look(url, config), some), strict=True):
                    survey.add(url, content, scan)
        return folder, survey.end()
    except OSError as error:
        raise unwritable(folder, error) from error


def _look(url: str, config: DataConfig) -> tuple[Content, Scan]:
    return content_of(url), _SCANS[PurePosixPath(url).suffix.lower()](url, config)


@final
class _Survey:
    """Writes an index, shard by shard; nothing of a row stays in memory."""

    def __init__(self, config: DataConfig, folder: Path, stack: ExitStack) -> None:
        self.config, self.folder = config, folder
        self._rows, self._spans, self._names = (
            stack.enter_context((folder / name).open("wb")) for name in (ROWS, SPANS, _NAMES)
        )
        self._shards: list[Shard] = []
        self._pieces: list[tuple[int, int, int, int, int]] = []
        self._classes: dict[str, int] = {}
        self._skipped: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._total = self._largest = self._tars = self._looked = self._grey = self._unlabelled = 0
        self._lowest = 1.0, 0  # draw, and row

    def add(self, url: str, content: Content, scan: Scan) -> None:
        """Write down one shard."""
        state, draws = np.full(scan.rows, TRAIN, dtype=np.uint8), _draws(url, scan.rows)
        state[draws < self.config.held_out] = HELD_OUT
        for row, why in scan.skipped:
            state[row], draws[row] = 0, 1
            self._note(f"skipped: {why}", f"{shown(url)}#{row}")
        for what in scan.notes:
            self._note(f"noted: {what}", shown(url))
        if scan.rows and draws.min() < self._lowest[0]:
            self._lowest = float(draws.min()), self._total + int(draws.argmin())
        self._rows.write(state.tobytes())
        tar = scan.spans is not None
        if scan.spans is not None:
            self._spans.write(scan.spans.tobytes())
        if scan.labels is not None:
            numbers = [
                -1 if name is None else self._classes.setdefault(name, len(self._classes)) for name in scan.labels
            ]
            self._names.write(np.array(numbers, dtype=np.int32).tobytes())
            self._unlabelled += numbers.count(-1)
        self._pieces += [(len(self._shards), *piece[:4]) for piece in scan.pieces]
        self._largest = max([self._largest, *(piece[4] for piece in scan.pieces)])
        self._looked, self._grey = self._looked + scan.looked, self._grey + scan.grey
        self._shards.append(
            Shard(
                url=url,
                kind="tar" if tar else "parquet",
                size=content.size,
                tag=content.tag,
                rows=scan.rows,
                picture=scan.picture,
                caption=scan.caption,
                spans=self._tars,
            )
        )
        self._total, self._tars = self._total + scan.rows, self._tars + (scan.rows if tar else 0)

    def end(self) -> Report:
        """Write down what holds for all shards, whose files are closed by now."""
        state = np.memmap(self.folder / ROWS, np.uint8, "r+") if self._total else np.zeros(0, np.uint8)
        pieces = self._counted(state)
        train, held_out = (int(count) for count in pieces[:, 5:].sum(0))
        used = train + held_out
        self._refuse(self._total, used)
        if self.config.held_out and used > 1 and not held_out:
            state[self._lowest[1]] = HELD_OUT
            pieces, train = self._counted(state), train - 1
        if not train:
            raise InputError(f"data.held_out={self.config.held_out} leaves nothing to train on of {used} pictures.")
        pieces.tofile(self.folder / PIECES)
        classes = self._write_labels(state)
        window = max(1, min(self.config.window, HELD // max(1, self._largest)))
        note = Note(
            format=FORMAT,
            shards=tuple(self._shards),
            window=window,
            classes=classes,
            grey=self._looked == self._grey > 0,
            digest=self._digest(state),
        )
        write_text(self.folder / NOTE, note.model_dump_json(indent=1) + "\n")
        return self._report(note, self._total, used, train)

    def _note(self, what: str, where: str) -> None:
        self._skipped[what] += 1
        self._first.setdefault(what, where)

    def _refuse(self, total: int, used: int) -> None:
        reasons = "; ".join(
            f"{count} {what.split(': ', 1)[1]} ({self._first[what]})" for what, count in self._skipped.most_common(3)
        )
        where = f"{self._shown()}, the first {shown(self._shards[0].url)}"
        if not total:
            raise InputError(f"no pictures in {where}{', but ' + reasons if reasons else ''}.")
        if not used or total - used > self.config.max_skipped * total:
            raise InputError(
                f"only {used} of {total} pictures in {where}, can be used: {reasons}. Mend the shards, or allow more "
                f"with --set data.max_skipped={min(1.0, round(1 - used / total + 0.01, 2))}."
            )

    def _shown(self) -> str:
        return f"{len(self._shards):,} shard{'s' if len(self._shards) > 1 else ''}"

    def _counted(self, state: np.ndarray) -> np.ndarray:
        """The pieces with their rows to train on and held out."""
        starts = np.array([0, *(shard.rows for shard in self._shards)]).cumsum()
        rows = []
        for shard, first, count, *groups in self._pieces:
            part = state[starts[shard] + first : starts[shard] + first + count]
            rows.append((shard, first, count, *groups, (part == TRAIN).sum(), (part == HELD_OUT).sum()))
        return np.array(rows, dtype=np.int64).reshape(-1, COLUMNS)

    def _write_labels(self, state: np.ndarray) -> tuple[str, ...]:
        """Write the labels of both parts; returns the names of the classes in their order."""
        names = tuple(sorted(self._classes, key=_natural))
        if names:
            place = {name: number for number, name in enumerate(names)}
            number = np.array([*map(place.__getitem__, self._classes), -1], dtype=np.int64)
            met = mapped(self.folder / _NAMES, np.int32)
            for part, file in LABELS.items():
                with (self.folder / file).open("wb") as out:
                    for start in range(0, len(state), _BLOCK):
                        block = slice(start, start + _BLOCK)
                        out.write(number[met[block][state[block] == part]].tobytes())
        (self.folder / _NAMES).unlink()
        return names

    def _digest(self, state: np.ndarray) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for shard in self._shards:
            digest.update(f"{PurePosixPath(shard.url).name} {shard.size} {shard.tag} {shard.rows}\n".encode())
        for start in range(0, len(state), _BLOCK):
            digest.update(state[start : start + _BLOCK].tobytes())
        return digest.hexdigest()

    def _report(self, note: Note, total: int, used: int, train: int) -> Report:
        size = sum(shard.size for shard in self._shards)
        captioned = [shard.caption for shard in self._shards if shard.caption]
        looked = "each read once" if self.config.check == "decode" else "not looked into (data.check=header)"
        always = [
            ("found", total, f"pictures in {self._shown()} of {size / 2**20:,.1f} MB together"),
            ("used", used, f"in {len(note.classes)} classes" if note.classes else "without classes"),
            ("to train on", train, looked),
            ("held out", used - train, "by a draw for each row"),
            ("mixed together", min(note.window, len(self._pieces)), f"of {len(self._pieces):,} pieces (data.window)"),
        ]
        sometimes = [
            ("captions", len(captioned), f"shards have them: {', '.join(sorted(set(captioned))[:4])}"),
            ("without a label", self._unlabelled, f"at data.labels={self.config.labels}: used all the same"),
            *((what, count, self._first[what]) for what, count in self._skipped.most_common()),
        ]
        return (*always, *(line for line in sometimes if line[1]))


def _draws(url: str, rows: int) -> np.ndarray:
    """In [0, 1], one for each row: by the name and not the place of a shard, so that the parts stay as they are when
    the set is moved, or grows.
    """
    key = Key(0, f"held out of {PurePosixPath(url).name}")
    blocks = torch.arange(rows).split(_BLOCK // 4) if rows else ()
    return np.concatenate([np.zeros(0), *(key.uniform(block).numpy() for block in blocks)])


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers in their own order, before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
