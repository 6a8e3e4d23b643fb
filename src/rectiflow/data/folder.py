"""A folder of pictures as a set to train on."""

import logging
from pathlib import Path
from typing import final

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from datasets.utils.logging import disable_progress_bar
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_folder
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, background, decode
from rectiflow.data.images import Images, ImageSet
from rectiflow.data.inventory import inventory

disable_progress_bar()  # of `datasets`; ours says what is going on
_LOG = logging.getLogger("rectiflow")
_NEIGHBOURS = 20


@final
class Files(Images):
    """Pictures decoded when they are asked for; only the table of their paths is held, mapped from disk.

    Args:
        table: columns path, label, caption.
        config: how to decode.
        size: H, W.
        grey: one channel or three.
    """

    costly = True

    def __init__(self, table: Dataset, config: DataConfig, size: tuple[int, int], grey: bool) -> None:
        self.table, self.config, self.grey = table.flatten_indices(), config, grey
        self.shape = (1 if grey else 3, *size)
        self.labels = torch.tensor(self.table["label"][:], dtype=torch.int64)
        self.captioned = any(self.table["caption"])
        self._lost: set[str] = set()

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """uint8 pictures at `index`. One that has become unreadable is named once and its neighbour taken instead.

        Raises:
            InputError: a whole neighbourhood is unreadable.
        """
        places = [[0.5, 0.5, 1.0]] * len(index) if place is None else place.tolist()
        pictures = [self._one(i, p) for i, p in zip(index.tolist(), places, strict=True)]
        return torch.from_numpy(np.stack(pictures))

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The captions at `index`; empty where there is none."""
        return [self.table.data.column("caption")[i].as_py() for i in index.tolist()]

    def _one(self, index: int, place: list[float]) -> np.ndarray:
        for step in range(_NEIGHBOURS):
            path = self.table.data.column("path")[(index + step) % len(self)].as_py()
            try:
                return decode(Path(self.config.dir, path), self.config, self.shape[1:], self.grey, place)
            except Unusable as problem:
                if path not in self._lost:
                    self._lost.add(path)
                    _LOG.warning("%s: %s; another picture takes its place.", path, problem)
        raise InputError(
            f"{self.config.dir} has changed: {path} and {_NEIGHBOURS - 1} pictures before it cannot be read any more; "
            "restore them and go on with --resume."
        )


def open_folder(config: DataConfig, index: Path | None = None) -> ImageSet:
    """The pictures of `config.dir`.

    Args:
        config: the folder and how to read it.
        index: what `write_index` wrote for a run that goes on: it is taken as it is, so that the run has the pictures
            it began with, whatever has come into the folder. None surveys the folder.

    Raises:
        InputError: nothing there can be trained on; one line.
    """
    background(config.background)
    if index is not None:
        return _as_set(config, _read(index), ())
    rows, report = inventory(config)
    return _as_set(config, Dataset.from_list(rows), report)


def write_index(data: ImageSet, index: Path) -> None:
    """Write down which pictures a set has, if it is a folder's; see `open_folder`.

    Raises:
        InputError: the disk is full or read-only.
    """
    parts = [part.table.remove_columns("label") for part in (data.train, data.held_out) if isinstance(part, Files)]
    if parts:
        write_folder(index, lambda aside: concatenate_datasets(parts).save_to_disk(str(aside)))


def _as_set(config: DataConfig, table: Dataset, report: tuple[tuple[str, int, str], ...]) -> ImageSet:
    names = tuple(sorted(set(table["class"]) - {""}, key=_natural))
    grey = config.colour == "grey" or (config.colour == "auto" and all(table["grey"]))
    size = config.height_width if config.size is not None else _common_size(table)
    number = {name: label for label, name in enumerate(names)}
    table = table.add_column("label", [number.get(name, -1) for name in table["class"]])
    held_out = np.array(table["held_out"], dtype=bool)
    parts = [Files(table.select(np.flatnonzero(chosen)), config, size, grey) for chosen in (~held_out, held_out)]
    return ImageSet(parts[0], parts[1], names, report=report)


def _common_size(table: Dataset) -> tuple[int, int]:
    sizes = sorted(set(zip(table["height"], table["width"], strict=True)))
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = sizes[0], sizes[-1]
        raise InputError(
            f"the pictures have {len(sizes)} sizes, from {h0}×{w0} to {h1}×{w1}; choose one: --set data.size=64."
        )
    return sizes[0]


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers in their own order, before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _read(index: Path) -> Dataset:
    try:
        return load_from_disk(str(index))
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise InputError(f"{index} cannot be read; restore it, or begin another run.") from error
