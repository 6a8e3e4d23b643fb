"""Sets of pictures, wherever the pictures lie."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from rectiflow.data.order import PieceOrder

_ROWS = 4096


class Images(ABC):
    """Labelled pictures of one size, fetched by index. Subclasses are final.

    Attributes:
        shape: C, H, W of what `fetch` gives; C, T, H, W of clips of T frames.
        labels: int64 N; −1 for a picture without a label.
        costly: whether fetching is work that another process should do ahead.
        prepared: whether crops and mirrors are made already, so that `place` chooses among what there is.
        captioned: whether any picture has a caption.
        paired: pictures of the same length and size, each given of the one of its index; None if there are none.
        stills: single frames that the set has beside its clips, of shape C, 1, H, W; None if there are none.
        digest: what tells this set from others of its kind and length; empty where that is told by other means.
        order: in which an epoch goes through the pictures; None permutes all of them together.
    """

    shape: tuple[int, ...]
    labels: Tensor
    costly: bool = False
    prepared: bool = False
    captioned: bool = False
    paired: "Images | None" = None
    stills: "Images | None" = None
    digest: str = ""
    order: PieceOrder | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """H, W."""
        return self.shape[-2], self.shape[-1]

    @abstractmethod
    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The pictures at `index` (int64 B), B×C×H×W: float32 in [−1, 1], or uint8 for 256 levels (see `to_float`).

        Args:
            index: which.
            place: B×3 in [0, 1]: where a picture larger than H×W is cropped, from top left to bottom right, and how far
                it is enlarged between the least and the most that is asked for; None is the centre, at the most. Sets
                whose pictures have the size already ignore it.
        """

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """A caption of each picture at `index`; empty where there is none.

        Args:
            index: which, int64 B.
            choice: B in [0, 1): of a picture's n captions number ⌊n·choice⌋; None is the first.
        """
        return [""] * len(index)

    def every_caption(self) -> Iterator[str]:
        """All captions of all pictures, in an order that does not change."""
        for rows in torch.arange(len(self) if self.captioned else 0).split(_ROWS):
            yield from self.captions(rows)

    def buckets(self) -> "tuple[Bucket, ...]":
        """Each picture in one bucket, none of them empty; one of all pictures, unless `data.buckets` asks for more."""
        return (Bucket(Every(len(self)), self),)


@final
class Every:
    """The numbers 0 … `count` − 1, none of them held.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Tensor) -> Tensor:
        return index


class Bucket(NamedTuple):
    """Pictures that are trained on at one shape.

    Attributes:
        rows: which pictures of the set, int64.
        images: the whole set at that shape.
    """

    rows: Tensor | Every
    images: Images


def to_float(pixels: Tensor) -> Tensor:
    """uint8 levels 0 … 255 to float32 in [−1, 1]; float pictures are returned as they are."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


@final
class InMemory(Images):
    """Pictures or clips held as one tensor.

    Args:
        pixels: float32 N×C×H×W or N×C×T×H×W in [−1, 1].
        labels: int64 N.
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels
        self.shape = tuple(pixels.shape[1:])

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The pictures at `index`."""
        return self.pixels[index]


@final
class Frames(Images):
    """The frames of clips, each a picture: frame t of clip i is number i·T + t. They have no captions.

    Args:
        clips: C, T, H, W.
    """

    def __init__(self, clips: Images) -> None:
        channels, self.frames, height, width = clips.shape
        self.clips, self.shape = clips, (channels, height, width)
        self.labels, self.costly = clips.labels.repeat_interleave(self.frames), clips.costly

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The frames at `index`, B×C×H×W."""
        clips = self.clips.fetch(index // self.frames, place)
        return clips[torch.arange(len(index)), :, index % self.frames]


@dataclass(frozen=True)
class ImageSet:
    """A set in two parts that share no writer, scene, source or file.

    Args:
        train: what training may see.
        held_out: what it may not.
        class_names: name of each label; empty for a set without labels.
        levels: number of grey levels L; a level i is stored as 2i/(L−1) − 1.
        report: lines of what was found, used, skipped and why: (what, how many, note).
    """

    train: Images
    held_out: Images
    class_names: tuple[str, ...]
    levels: int = 256
    report: tuple[tuple[str, int, str], ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """C, H, W of one picture, or C, T, H, W of one clip; with buckets, of the picture whose proportions are nearest
        to those of `data.size`.
        """
        return self.train.shape

    @property
    def size(self) -> tuple[int, int]:
        """H, W of one picture or frame."""
        return self.train.size

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """C, H, W of every batch that training may see."""
        return tuple(bucket.images.shape for bucket in self.train.buckets())

    @property
    def unseen(self) -> Images:
        """The held-out pictures, or those of training where none are held out."""
        return self.held_out if len(self.held_out) else self.train


def frames_of(data: ImageSet) -> ImageSet:
    """The frames of a set of clips as a set of pictures; a set of pictures as it is."""
    if len(data.shape) == 3:
        return data
    return replace(data, train=Frames(data.train), held_out=Frames(data.held_out))
