"""A folder of pictures as a set to train on."""

import atexit
import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset, Features, Value, concatenate_datasets, load_from_disk
from datasets.utils.logging import disable_progress_bar
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.files import unwritable, write_folder
from rectiflow.data import buckets as shapes
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, background, decode
from rectiflow.data.images import Bucket, Images, ImageSet
from rectiflow.data.inventory import Report, inventory
from rectiflow.data.shards import content

disable_progress_bar()  # of `datasets`; ours says what is going on
_LOG = logging.getLogger("rectiflow")
_NEIGHBOURS = 20
_ROWS = 4096
_TEXT, _YES = Value("string"), Value("bool")
_COLUMNS = Features(
    {
        **{"path": _TEXT, "class": _TEXT, "captions": [_TEXT], "held_out": _YES},
        **{"height": Value("int64"), "width": Value("int64"), "grey": _YES},
    }
)


@final
class Files(Images):
    """Pictures decoded when they are asked for; only the table of their paths is held, mapped from disk.

    Args:
        table: columns path, label, captions, height, width.
        config: how to decode.
        sizes: H, W of each bucket.
        size: H, W of what `fetch` gives.
        grey: one channel or three.
    """

    costly = True

    def __init__(
        self, table: Dataset, config: DataConfig, sizes: list[shapes.Size], size: shapes.Size, grey: bool
    ) -> None:
        self.table, self.config, self.sizes, self.grey = table, config, sizes, grey
        self.shape = (1 if grey else 3, *size)
        self.labels = torch.tensor(self.table["label"][:], dtype=torch.int64)
        self.captioned = bool(pc.any(pc.greater(pc.list_value_length(self.table.data.column("captions")), 0)).as_py())
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
        """A caption of each picture at `index`; empty where there is none."""
        draws = [0.0] * len(index) if choice is None else choice.tolist()
        column = self.table.data.column("captions")
        given = [column[i].as_py() for i in index.tolist()]
        return [some[int(draw * len(some))] if some else "" for some, draw in zip(given, draws, strict=True)]

    def every_caption(self) -> Iterator[str]:
        """All captions of all pictures, those of one picture after one another."""
        for chunk in self.table.data.column("captions").chunks:
            for start in range(0, len(chunk), _ROWS):
                yield from chain.from_iterable(chunk.slice(start, _ROWS).to_pylist())

    def buckets(self) -> tuple[Bucket, ...]:
        """Each picture at the shape at which it keeps most of its area."""
        if len(self.sizes) == 1:
            return super().buckets()
        numbers = torch.from_numpy(shapes.assign(*_sides(self.table), self.sizes))
        rows = [torch.nonzero(numbers == number).flatten() for number in range(len(self.sizes))]
        return tuple(Bucket(some, self._at(size)) for some, size in zip(rows, self.sizes, strict=True) if len(some))

    def _at(self, size: shapes.Size) -> "Files":
        other = copy.copy(self)
        other.shape = (self.shape[0], *size)
        return other

    def _one(self, index: int, place: list[float]) -> np.ndarray:
        for step in range(_NEIGHBOURS):
            path = self.table.data.column("path")[(index + step) % len(self)].as_py()
            try:
                return decode(content(self.config.dir, path), self.config, self.size, self.grey, place)
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
    return _as_set(config, _mapped(rows), report)


def write_index(data: ImageSet, index: Path) -> None:
    """Write down which pictures a set has, if it is a folder's; see `open_folder`.

    Raises:
        InputError: the disk is full or read-only.
    """
    parts = [part.table.remove_columns("label") for part in (data.train, data.held_out) if isinstance(part, Files)]
    if parts:
        write_folder(index, lambda aside: concatenate_datasets(parts).save_to_disk(str(aside)))


def _as_set(config: DataConfig, table: Dataset, report: Report) -> ImageSet:
    names = tuple(sorted(set(table["class"]) - {""}, key=_natural))
    grey = config.colour == "grey" or (config.colour == "auto" and all(table["grey"]))
    size = config.height_width if config.size is not None else _common_size(table)
    number = {name: label for label, name in enumerate(names)}
    table = table.add_column("label", [number.get(name, -1) for name in table["class"]])
    held_out = np.array(table["held_out"], dtype=bool)
    train, others = (_selected(table, chosen) for chosen in (~held_out, held_out))
    sizes = [size]
    if config.buckets > 1:
        sizes = shapes.choose(*_sides(train), config)
        report = (*report, *shapes.table(*_sides(train), sizes, size)) if report else ()
        size = shapes.nearest(sizes, size)
    parts = [Files(part, config, sizes, size, grey) for part in (train, others)]
    return ImageSet(parts[0], parts[1], names, report=report)


def _sides(table: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths, int64 N each."""
    return table.data.column("height").to_numpy(), table.data.column("width").to_numpy()


def _selected(table: Dataset, chosen: np.ndarray) -> Dataset:
    part = table.select(np.flatnonzero(chosen))
    return part.flatten_indices(cache_file_name=str(_aside() / "part.arrow"))


def _mapped(rows: list[dict[str, Any]]) -> Dataset:
    """The rows in a file of this process, so that their pages are the system's to keep or to drop."""
    aside = _aside()
    try:
        Dataset.from_list(rows, features=_COLUMNS).save_to_disk(str(aside))
    except OSError as error:
        raise unwritable(aside, error) from error
    return load_from_disk(str(aside))


def _aside() -> Path:
    """A new folder, gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="rectiflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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
        table = load_from_disk(str(index))
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise InputError(f"{index} cannot be read; restore it, or begin another run.") from error
    if "caption" in table.column_names:  # of a run begun when a picture had one caption
        table = table.add_column("captions", [[caption] if caption else [] for caption in table["caption"]])
        table = table.remove_columns("caption").select_columns(list(_COLUMNS)).cast(_COLUMNS)
    return table
