"""What is given of the pictures of a set: made of them, or read from another folder by their names."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.config import DataConfig
from rectiflow.data.folder import Files, open_folder
from rectiflow.data.images import Images, ImageSet, to_float


def given_of(config: PictureConfig, images: Images, rows: Tensor, key: Key) -> Tensor:
    """What is given of the pictures at `rows` (int64 B), drawn by `key` and row; see `Request.picture`."""
    if images.paired is not None:
        return to_float(images.paired.fetch(rows))
    return degradation(config).given(to_float(images.fetch(rows)), key, rows)


def with_pairs(data: ImageSet, config: PictureConfig, read_as: DataConfig) -> ImageSet:
    """`data` with the picture of the same name, endings aside, in the folder `config.dir` for each; as it is if what is
    given of a picture is made of it.

    Raises:
        InputError: a picture has no pair, or the data are no folder; one line.
    """
    if config.kind != "paired":
        return data
    if not isinstance(data.train, Files) or not isinstance(data.held_out, Files):
        raise InputError(
            "picture.kind=paired goes by the names of files, and these data have none; use data.set=folder."
        )
    changes = {"dir": config.dir, "size": data.size, "labels": "none", "held_out": 0.0}
    colour = "grey" if data.shape[0] == 1 else "rgb"
    others = open_folder(DataConfig.parse({**read_as.model_dump(), **changes, "colour": colour}, "picture.dir"))
    where: dict[str, tuple[Files, int]] = {}
    for part in (others.train, others.held_out):
        assert isinstance(part, Files)
        where |= {_name(path): (part, row) for row, path in enumerate(part.table["path"])}
    train, held_out = (_joined(part, where, config.dir) for part in (data.train, data.held_out))
    return replace(data, train=train, held_out=held_out)


def _joined(part: Files, where: dict[str, tuple[Files, int]], folder: str) -> Files:
    paths = part.table["path"]
    if missing := [path for path in paths if _name(path) not in where]:
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures have no pair in {folder}, the first {missing[0]}; add a picture "
            "of that name there, or take this one away."
        )
    found = [where[_name(path)] for path in paths]
    joined = copy.copy(part)
    joined.paired = _Pairs(found, part) if found else None
    return joined


def _name(path: str) -> str:
    return str(Path(path).with_suffix(""))


@final
class _Pairs(Images):
    """The pair of each picture: a row of one of the parts of the other folder."""

    def __init__(self, found: Sequence[tuple[Files, int]], like: Files) -> None:
        self.found, self.shape, self.labels = found, like.shape, like.labels

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The pairs at `index`."""
        pairs = [self.found[i] for i in index.tolist()]
        return torch.cat([part.fetch(torch.tensor([row]), place) for part, row in pairs])
