"""Sets of which a rehearsal looks at a few pictures, and few that stand for many."""

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from rectiflow.data.images import Images, ImageSet


@final
class First(Images):
    """The first pictures of a set.

    Args:
        images: the set.
        count: how many, at most.
    """

    def __init__(self, images: Images, count: int) -> None:
        self.images, self.shape, self.labels = images, images.shape, images.labels[:count]
        self.costly, self.prepared, self.captioned = images.costly, images.prepared, images.captioned
        self.paired = None if images.paired is None else First(images.paired, count)

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The pictures at `index`."""
        return self.images.fetch(index, place)

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The captions of the pictures at `index`."""
        return self.images.captions(index, choice)


@final
class Repeated(Images):
    """Few pictures, over and over, in the place of many.

    Args:
        few: what is given.
        many: in whose place, for labels and captions.
    """

    def __init__(self, few: Images, many: Images) -> None:
        self.few, self.many, self.shape, self.labels = few, many, few.shape, many.labels
        self.costly, self.prepared, self.captioned = few.costly, few.prepared, many.captioned
        if few.stills is not None and many.stills is not None:
            self.stills = Repeated(few.stills, many.stills)

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """What stands for the pictures at `index`."""
        return self.few.fetch(torch.as_tensor(index) % len(self.few), place)

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The captions of the pictures at `index`."""
        return self.many.captions(index, choice)

    def every_caption(self) -> Iterator[str]:
        """All captions of all pictures."""
        return self.many.every_caption()


def few_of(data: ImageSet, train: int, held_out: int) -> ImageSet:
    """The first pictures of each part; stills stay with them, as few."""
    first = First(data.train, train)
    first.stills = None if data.train.stills is None else First(data.train.stills, train)
    return replace(data, train=first, held_out=First(data.held_out, held_out))


def in_place_of(few: ImageSet, many: ImageSet) -> ImageSet:
    """`few` over and over, with the labels and captions of `many`."""
    held_out = Repeated(few.held_out, many.held_out) if len(few.held_out) else few.held_out
    return replace(many, train=Repeated(few.train, many.train), held_out=held_out)
