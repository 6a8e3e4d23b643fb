"""Clips as pictures, one frame of each, for scores of pictures.

Frames of one clip resemble each other: many of them would count as many samples, and make intervals too narrow. So a
clip gives one frame, which its number alone chooses, made or real.
"""

from typing import final

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, ImageSet

_CHUNK = 64  # clips in memory


@final
class OneFrame(Images):
    """One frame of each clip, with its label and captions.

    Args:
        clips: of shape C, T, H, W.
    """

    def __init__(self, clips: Images) -> None:
        channels, _, height, width = clips.shape
        self.clips, self.shape, self.labels = clips, (channels, height, width), clips.labels
        self.costly, self.captioned = clips.costly, clips.captioned

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The frames of the clips at `index`, B×C×H×W."""
        return torch.cat([one_frame(self.clips.fetch(rows, _of(place, at)), rows) for at, rows in _split(index)])

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """Those of the clips."""
        return self.clips.captions(index, choice)


def one_frame(clips: Tensor, index: Tensor | None = None) -> Tensor:
    """A frame of each clip N×C×T×H×W, N×C×H×W, evenly among the T; pictures N×C×H×W are returned as they are.

    Args:
        clips: what is made or real.
        index: number of each clip, int64 N; None is 0 … N−1.
    """
    if clips.dim() == 4:
        return clips
    index = torch.arange(len(clips)) if index is None else index
    frame = (Key(0, "one frame").uniform(index) * clips.shape[2]).long()
    return clips[torch.arange(len(clips)), :, frame]


def _split(index: Tensor) -> list[tuple[slice, Tensor]]:
    return [(slice(start, start + _CHUNK), index[start : start + _CHUNK]) for start in range(0, len(index), _CHUNK)]


def _of(place: Tensor | None, rows: slice) -> Tensor | None:
    return None if place is None else place[rows]


def as_pictures(data: ImageSet) -> ImageSet:
    """A set of clips as one of pictures, a frame of each; a set of pictures is returned as it is."""
    if len(data.shape) == 3:
        return data
    return ImageSet(OneFrame(data.train), OneFrame(data.held_out), data.class_names, data.levels)
