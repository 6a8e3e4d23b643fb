"""Pictures and clips listed in a table that is mapped from disk, and read when they are asked for."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable
from rectiflow.data.images import Images

_LOG = logging.getLogger("rectiflow")
_NEIGHBOURS = 20
_ROWS = 4096


class Listed(Images):
    """Rows of a table, each of a file. Subclasses are final.

    Args:
        table: columns path, label, captions.
        config: where the files lie and how to read them.
    """

    costly = True
    noun = "picture"

    def __init__(self, table: Dataset, config: DataConfig) -> None:
        self.table, self.config = table, config
        self.labels = torch.tensor(self.table["label"][:], dtype=torch.int64)
        self.captioned = bool(pc.any(pc.greater(pc.list_value_length(self.table.data.column("captions")), 0)).as_py())
        self._lost: set[str] = set()

    @abstractmethod
    def read(self, row: int, path: str, place: Sequence[float]) -> np.ndarray:
        """The pixels of a row, uint8.

        Raises:
            Unusable: its file cannot be read.
        """

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """uint8 pixels at `index`. A file that has become unreadable is named once and its neighbour taken instead.

        Raises:
            InputError: a whole neighbourhood is unreadable.
        """
        places = [[0.5, 0.5, 1.0]] * len(index) if place is None else place.tolist()
        return torch.from_numpy(np.stack([self._one(i, p) for i, p in zip(index.tolist(), places, strict=True)]))

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """A caption of each row at `index`; empty where there is none."""
        draws = [0.0] * len(index) if choice is None else choice.tolist()
        column = self.table.data.column("captions")
        given = [column[i].as_py() for i in index.tolist()]
        return [some[int(draw * len(some))] if some else "" for some, draw in zip(given, draws, strict=True)]

    def every_caption(self) -> Iterator[str]:
        """All captions of all rows, those of one row after one another."""
        for chunk in self.table.data.column("captions").chunks:
            for start in range(0, len(chunk), _ROWS):
                yield from chain.from_iterable(chunk.slice(start, _ROWS).to_pylist())

    def _one(self, index: int, place: list[float]) -> np.ndarray:
        tried: list[str] = []
        for step in range(len(self)):
            row = (index + step) % len(self)
            path = self.table.data.column("path")[row].as_py()
            if path in tried:  # the windows of one film
                continue
            try:
                return self.read(row, path, place)
            except Unusable as problem:
                tried.append(path)
                if path not in self._lost:
                    self._lost.add(path)
                    _LOG.warning("%s: %s; another %s takes its place.", path, problem, self.noun)
            if len(tried) == _NEIGHBOURS:
                break
        raise InputError(
            f"{self.config.dir} has changed: {path} and {len(tried) - 1} {self.noun}s before it cannot be read any "
            "more; restore them and go on with --resume."
        )
