"""Pictures in shards, local or remote, as a set to train on; they are read when they are asked for.

Which rows a step takes is a function of (seed, step), like the rest of a batch: no reader has a state, and how many
processes read, or where a run was stopped, changes nothing.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, background, decode, inspect
from rectiflow.data.images import Images, ImageSet
from rectiflow.data.inventory import unsuited
from rectiflow.data.order import PieceOrder
from rectiflow.data.streams_index import HELD_OUT, TRAIN, Index
from rectiflow.data.streams_read import Sample, samples
from rectiflow.data.streams_survey import survey_shards

_LOG = logging.getLogger("rectiflow")
_NEIGHBOURS, _TOLD = 20, 20
_ROWS = 4096


@final
class Streamed(Images):
    """One part of the rows of shards.

    Args:
        index: where they lie.
        part: TRAIN or HELD_OUT.
        config: how to decode.
    """

    costly = True

    def __init__(self, index: Index, part: int, config: DataConfig) -> None:
        self.index, self.part, self.config = index, part, config
        grey = config.colour == "grey" or (config.colour == "auto" and index.note.grey)
        self.shape = (1 if grey else 3, *config.height_width)
        sizes = index.sizes(part)
        labels = index.labels(part)
        self.labels = (
            torch.full((), -1, dtype=torch.int64).expand(int(sizes.sum()))
            if labels is None
            else torch.from_numpy(labels)
        )
        self.captioned = any(shard.caption for shard in index.note.shards)
        self.order = PieceOrder(sizes, index.note.window)
        self.digest = index.note.digest
        self._instead: dict[int, int] = {}
        self._lost: set[int] = set()
        self._checked: set[str] = set()
        self._latest: dict[int, list[str]] = {}

    def __reduce__(self) -> tuple[type["Streamed"], tuple[Index, int, DataConfig]]:
        return Streamed, (self.index, self.part, self.config)

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """uint8 pixels at `index`. Where a picture cannot be used, the next row stands in for it, with its caption and
        label, each time the same; this is said once.

        Raises:
            InputError: a shard cannot be read or has changed, or a whole neighbourhood of rows cannot be used.
        """
        rows = index.tolist()
        found = samples(self.index, self.part, index.numpy())
        places = [[0.5, 0.5, 1.0]] * len(rows) if place is None else place.tolist()
        self._latest = {row: captions for row, (_, captions) in zip(rows, found, strict=True)}
        each = zip(rows, found, places, strict=True)
        return torch.from_numpy(np.stack([self._one(row, sample, at) for row, sample, at in each]))

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """A caption of each row at `index`; empty where there is none."""
        if not self.captioned:
            return [""] * len(index)
        rows = index.tolist()
        draws = [0.0] * len(rows) if choice is None else choice.tolist()
        known = self._latest  # what `fetch` has just read beside the pictures
        missing = [row for row in dict.fromkeys(rows) if row not in known]
        if missing:
            asked = np.array([self._instead.get(row, row) for row in missing], dtype=np.int64)
            read = samples(self.index, self.part, asked, pictures=False)
            known = known | {row: captions for row, (_, captions) in zip(missing, read, strict=True)}
        given = [known[row] for row in rows]
        return [some[int(draw * len(some))] if some else "" for some, draw in zip(given, draws, strict=True)]

    def every_caption(self) -> Iterator[str]:
        """All captions of all rows, those of one row after one another."""
        for start in range(0, len(self) if self.captioned else 0, _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(self)))
            for _, captions in samples(self.index, self.part, rows, pictures=False):
                yield from captions

    def _one(self, row: int, sample: Sample, place: Sequence[float]) -> np.ndarray:
        for step in range(min(_NEIGHBOURS, len(self))):
            other = (row + step) % len(self)
            if step:
                [sample] = samples(self.index, self.part, np.array([other]))
            try:
                pixels = self._decoded(sample[0], place)
            except Unusable as problem:
                self._tell(other, problem)
                continue
            if step:
                self._stand_in(row, other, sample[1])
            return pixels
        shard, name = self.index.named(self.part, row)
        raise InputError(
            f"{name} and {step} rows after it cannot be used; mend {shard.url}, or leave it out of data.shards, and "
            "begin another run."
        )

    def _decoded(self, content: bytes | None, place: Sequence[float]) -> np.ndarray:
        if content is None:
            raise Unusable("no bytes of a picture")
        if self.config.check == "header":  # not looked into before
            facts = inspect(content, whole=False)
            if reason := unsuited(self.config, facts.height, facts.width):
                raise Unusable(reason)
        return decode(content, self.config, self.size, self.shape[0] == 1, place)

    def _tell(self, row: int, problem: Unusable) -> None:
        """Say once that a row cannot be used.

        Raises:
            InputError: its shard is another one now.
        """
        if row in self._lost:
            return
        self._lost.add(row)
        shard, name = self.index.named(self.part, row)
        if shard.url not in self._checked:
            shard.check()
            self._checked.add(shard.url)
        if len(self._lost) <= _TOLD:
            _LOG.warning("%s: %s; the next row takes its place.", name, problem)
        elif len(self._lost) == _TOLD + 1:
            _LOG.warning("more rows cannot be used; data.check=decode finds them all before training.")

    def _stand_in(self, row: int, other: int, captions: list[str]) -> None:
        self._instead[row], self._latest[row] = other, captions
        if self.index.note.classes:
            self.labels[row] = self.labels[other]


def open_shards(config: DataConfig, index: Path | None = None) -> ImageSet:
    """The pictures of `config.shards`.

    Args:
        config: the shards and how to read them.
        index: what a run that goes on has kept of them: the shards must be what they were then. None looks through
            them.

    Raises:
        InputError: shards that are missing, have changed, or hold nothing that can be trained on; one line.
    """
    if config.size is None:
        raise InputError("shards need a size, since not all of their pictures are looked at together: data.size=64.")
    background(config.background)
    folder, report = survey_shards(config) if index is None else (index, ())
    found = Index(folder)
    if index is not None:
        found.check()
    parts = [Streamed(found, part, config) for part in (TRAIN, HELD_OUT)]
    return ImageSet(parts[0], parts[1], found.note.classes, report=report)
