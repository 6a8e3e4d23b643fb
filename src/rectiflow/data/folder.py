"""A folder of pictures as a set to train on."""

import atexit
import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from datasets import Dataset, Features, Value, concatenate_datasets, load_from_disk
from datasets.utils.logging import disable_progress_bar

from rectiflow.base.errors import InputError
from rectiflow.base.files import unwritable, write_folder
from rectiflow.data import buckets as shapes
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import background, decode
from rectiflow.data.films import Window, read_window
from rectiflow.data.images import Bucket, ImageSet
from rectiflow.data.inventory import Report, inventory
from rectiflow.data.shards import content
from rectiflow.data.table import Listed

disable_progress_bar()  # of `datasets`; ours says what is going on
_TEXT, _YES, _REAL = Value("string"), Value("bool"), Value("float64")
_COLUMNS = Features(
    {
        **{"path": _TEXT, "class": _TEXT, "captions": [_TEXT], "held_out": _YES},
        **{"height": Value("int64"), "width": Value("int64"), "grey": _YES},
    }
)
_OF_CLIPS = Features({**_COLUMNS, "start": _REAL, "rate": _REAL, "gap": _REAL})


@final
class Files(Listed):
    """Pictures decoded when they are asked for; only the table of their paths is held, mapped from disk.

    Args:
        table: columns path, label, captions, height, width.
        config: how to decode.
        sizes: H, W of each bucket.
        size: H, W of what `fetch` gives.
        grey: one channel or three.
    """

    def __init__(
        self, table: Dataset, config: DataConfig, sizes: list[shapes.Size], size: shapes.Size, grey: bool
    ) -> None:
        super().__init__(table, config)
        self.sizes, self.grey = sizes, grey
        self.shape = (1 if grey else 3, *size)

    def read(self, row: int, path: str, place: Sequence[float]) -> np.ndarray:
        """The picture of a file, uint8 C×H×W."""
        return decode(content(self.config.dir, path), self.config, self.size, self.grey, place)

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


@final
class ClipFiles(Listed):
    """Clips of films, decoded when they are asked for, a few frames at a time.

    Args:
        table: columns path, label, captions, height, width; start, rate and gap of each clip's `Window`, without a
            start for a picture.
        config: how to decode.
        shape: C, T, H, W of what `fetch` gives; pictures are of one frame.
    """

    noun = "clip"

    def __init__(self, table: Dataset, config: DataConfig, shape: tuple[int, ...]) -> None:
        super().__init__(table, config)
        self.shape = shape

    def read(self, row: int, path: str, place: Sequence[float]) -> np.ndarray:
        """The clip of a row, uint8 C×T×H×W."""
        start, rate, gap = (self.table.data.column(name)[row].as_py() for name in ("start", "rate", "gap"))
        if start is None:
            file = content(self.config.dir, path)
            return decode(file, self.config, self.size, self.shape[0] == 1, place)[:, None]
        return read_window(Path(self.config.dir, path), Window(start, rate, gap), self.config, self.shape, place)


def open_folder(config: DataConfig, index: Path | None = None) -> ImageSet:
    """The pictures of `config.dir`; with `config.frames` > 1 its clips, with pictures as their `stills`.

    Args:
        config: the folder and how to read it.
        index: what `write_index` wrote for a run that goes on: it is taken as it is, so that the run has the pictures
            it began with, whatever has come into the folder. None surveys the folder.

    Raises:
        InputError: nothing there can be trained on; one line.
    """
    background(config.background)
    if index is not None:
        return _as_set(config, _read(index, config.frames > 1), ())
    rows, report = inventory(config)
    return _as_set(config, _mapped(rows), report)


def write_index(data: ImageSet, index: Path) -> None:
    """Write down which pictures or clips a set has, if it is a folder's; see `open_folder`.

    Raises:
        InputError: the disk is full or read-only.
    """
    parts = [data.train, data.train.stills, data.held_out, data.held_out.stills]
    tables = [part.table.remove_columns("label") for part in parts if isinstance(part, Listed)]
    if tables:
        write_folder(index, lambda aside: concatenate_datasets(tables).save_to_disk(str(aside)))


def _as_set(config: DataConfig, table: Dataset, report: Report) -> ImageSet:
    names = tuple(sorted(set(table["class"]) - {""}, key=_natural))
    grey = config.colour == "grey" or (config.colour == "auto" and all(table["grey"]))
    size = config.height_width if config.size is not None else _common_size(table)
    number = {name: label for label, name in enumerate(names)}
    table = table.add_column("label", [number.get(name, -1) for name in table["class"]])
    held_out = np.array(table["held_out"], dtype=bool)
    train, others = (_selected(table, chosen) for chosen in (~held_out, held_out))
    if config.frames > 1:
        shape = (1 if grey else 3, config.frames, *size)
        return ImageSet(_clips(train, config, shape), _clips(others, config, shape), names, report=report)
    sizes = [size]
    if config.buckets > 1:
        sizes = shapes.choose(*_sides(train), config)
        report = (*report, *shapes.table(*_sides(train), sizes, size)) if report else ()
        size = shapes.nearest(sizes, size)
    parts = [Files(part, config, sizes, size, grey) for part in (train, others)]
    return ImageSet(parts[0], parts[1], names, report=report)


def _clips(table: Dataset, config: DataConfig, shape: tuple[int, ...]) -> ClipFiles:
    """The clips of a table, with the pictures beside them."""
    pictures = table.data.column("start").is_null().to_numpy()
    clips = ClipFiles(_selected(table, ~pictures), config, shape)
    if pictures.any():
        clips.stills = ClipFiles(_selected(table, pictures), config, (shape[0], 1, *shape[2:]))
    return clips


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
        Dataset.from_list(rows, features=_OF_CLIPS if "start" in rows[0] else _COLUMNS).save_to_disk(str(aside))
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


def _read(index: Path, clips: bool) -> Dataset:
    try:
        table = load_from_disk(str(index))
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise InputError(f"{index} cannot be read; restore it, or begin another run.") from error
    if clips != ("start" in table.column_names):
        raise InputError(f"{index} lists {'pictures' if clips else 'clips'}, which data.frames is not for.")
    if "caption" in table.column_names:  # of a run begun when a picture had one caption
        table = table.add_column("captions", [[caption] if caption else [] for caption in table["caption"]])
        table = table.remove_columns("caption").select_columns(list(_COLUMNS)).cast(_COLUMNS)
    return table
