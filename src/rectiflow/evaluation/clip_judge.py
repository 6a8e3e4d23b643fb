"""A judge that reads digit, colour, direction and speed out of a clip of one coloured digit, without its caption.

Each frame is read as a picture, by the rules of `rectiflow.evaluation.judge`: the 8×8 window of most light is the
object, its colour is that of most of its light, its digit is read by readers of held-out writers. A frame shows one
object if there is enough light in that window, and not enough for another outside of it.

What a clip shows: the digit and the colour of most of its frames; of equally many, those with the larger sum of votes.
The centres of the object over the frames are fitted by a straight line, each coordinate by the median of the slopes of
all pairs of frames (Theil 1950, Sen 1968). The line is a movement if the centre lies within 1.5 pixels of it in three
frames of four; its direction is the larger component, if that is at least 0.25 pixels a frame and twice the other; its
speed is the nearest of the set's, by that component.

A share of the frames may be off, one in ten (of 17 frames one): identity holds if all the others show the digit and the
colour that the clip shows; a clip has one object if all the others show one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.moving import DIRECTIONS, SPEEDS
from rectiflow.data.scenes import COLOURS, SIDE
from rectiflow.evaluation.judge import INK, Judge, colour_votes, densest, ink_of, judge, light_of, lit

_OFF = 0.1  # share of the frames that may be off
_CHUNK = 64  # frames
_LEAST_FRAMES = 5
_MOVES, _ON_AXIS = 0.25, 2.0  # pixels a frame; how many times the other component
_NEAR, _MOST = 1.5, 0.75  # pixels from the line, share of the frames


@dataclass(frozen=True)
class Reading:
    """What a reader sees in a clip.

    Args:
        digit: of most frames; None if none shows anything.
        colour: likewise.
        direction: a name of `DIRECTIONS`; None if it does not move along one.
        speed: a name of `SPEEDS`; None without a direction.
        identity: whether digit and colour are the same in all frames, but one in ten.
        strict_identity: whether in all frames.
        alone: whether there is one object, and no other, in all frames, but one in ten.
    """

    digit: int | None
    colour: str | None
    direction: str | None
    speed: str | None
    identity: bool
    strict_identity: bool
    alone: bool


class _Frames(NamedTuple):
    """N frames, of which M show something.

    Args:
        there: bool N, whether there is an object.
        alone: bool N, whether there is one and no other.
        windows: M×8×8, its ink.
        votes: M×7, its colour.
        centre: N×2, row and column; NaN where there is none.
    """

    there: Tensor
    alone: Tensor
    windows: Tensor
    votes: Tensor
    centre: Tensor


@final
class ClipJudge:
    """Reads clips, once with each reader of a judge of pictures.

    Args:
        pictures: the judge whose readers and rules it takes.
    """

    def __init__(self, pictures: Judge) -> None:
        self.pictures = pictures

    def read(self, pixels: Tensor) -> list[list[Reading]]:
        """What each reader sees in each clip: one list for each reader. Each clip is read by itself.

        Args:
            pixels: N×3×T×32×32 in [−1, 1]; what lies beyond is clipped, and what is not a number is black. T ≥ 5.

        Raises:
            InputError: clips of another shape, or shorter.
        """
        if pixels.dim() != 5 or pixels.shape[1] != 3 or tuple(pixels.shape[3:]) != (SIDE, SIDE):
            raise InputError(f"the judge reads clips N×3×T×{SIDE}×{SIDE}, received {tuple(pixels.shape)}.")
        if pixels.shape[2] < _LEAST_FRAMES:
            raise InputError(f"a movement takes {_LEAST_FRAMES} frames to judge, received {pixels.shape[2]}.")
        if not len(pixels):
            return [[] for _ in self.pictures.writers]
        length = pixels.shape[2]
        parts = pixels.transpose(1, 2).flatten(0, 1).split(_CHUNK)
        frames = _Frames(*(torch.cat(each) for each in zip(*map(_frames, parts), strict=True)))
        there, alone = frames.there.reshape(-1, length), frames.alone.reshape(-1, length)
        ways = [movement(centre) for centre in frames.centre.reshape(-1, length, 2).numpy()]
        bounds = [0, *there.sum(1).cumsum(0).tolist()]  # of the M frames, those of each clip
        one_object = (~alone).sum(1) <= _OFF * length
        colours = frames.votes.argmax(1).tolist()
        readings = []
        for reader, digits in enumerate(self.pictures.digits(frames.windows)):
            found = []
            for clip, way in enumerate(ways):
                rows = slice(bounds[clip], bounds[clip + 1])
                digit, colour = self._most(reader, frames, digits, rows), _most(colours[rows], frames.votes[rows])
                off = length - sum((digit, colour) == both for both in zip(digits[rows], colours[rows], strict=True))
                found.append(
                    Reading(
                        digit,
                        None if colour is None else list(COLOURS)[colour],
                        *way,
                        identity=off <= _OFF * length,
                        strict_identity=off == 0,
                        alone=bool(one_object[clip]),
                    )
                )
            readings.append(found)
        return readings

    def _most(self, reader: int, frames: _Frames, digits: list[int], rows: slice) -> int | None:
        """The digit of most of a clip's frames; its votes are only counted if two are equally many."""
        most = Counter(digits[rows]).most_common(2)
        tied = len(most) == 2 and most[0][1] == most[1][1]
        votes = self.pictures.digit_votes(reader, frames.windows[rows]) if tied else None
        return _most(digits[rows], votes)


def clip_judge() -> ClipJudge:
    """The judge of digit-clips, by the three held-out writers of the built-in digits; made in seconds."""
    return ClipJudge(judge())


def movement(centre: np.ndarray) -> tuple[str | None, str | None]:
    """Direction and speed of an object whose centres over T frames are T×2, row and column, NaN where it is missing;
    None for each that it has not.
    """
    length = len(centre)
    frames = np.arange(length)[np.isfinite(centre).all(1)]
    centre = centre[frames]
    if len(frames) < max(2, _MOST * length):
        return None, None
    early, late = np.triu_indices(len(frames), 1)
    slope = np.median((centre[late] - centre[early]) / (frames[late] - frames[early])[:, None], axis=0)
    rest = centre - frames[:, None] * slope
    near = np.hypot(*(rest - np.median(rest, axis=0)).T) <= _NEAR
    axis = int(np.abs(slope).argmax())
    along, across = abs(slope[axis]), abs(slope[1 - axis])
    if near.sum() < _MOST * length or along < _MOVES or along < _ON_AXIS * across:
        return None, None
    direction = next(name for name, step in DIRECTIONS.items() if step[axis] == np.sign(slope[axis]))
    return direction, min(SPEEDS, key=lambda name: abs(SPEEDS[name] - along))


def _most(values: Sequence[int], votes: Tensor | None) -> int | None:
    """The value of most frames, of equally many the one with the larger sum of `votes` (frames × values)."""
    counts = Counter(values)
    if not counts:
        return None
    best = [value for value, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 or votes is None else max(best, key=lambda value: float(votes[:, value].sum()))


def _frames(pixels: Tensor) -> _Frames:
    """What there is in frames N×3×32×32."""
    light = light_of(pixels)
    bright = lit(light, 1)
    coarse = densest(bright)
    cells = _cut(light, coarse.corner)  # N×3×10×10
    there = coarse.windows.sum((-2, -1)) > INK
    place = torch.arange(SIDE)
    inside = [((place >= c[:, None] - 1) & (place <= c[:, None] + 8)) for c in coarse.corner.unbind(1)]
    others = torch.where(inside[0][:, :, None] & inside[1][:, None], 0.0, bright)
    alone = there & (F.avg_pool2d(others, 8, 1, divisor_override=1).flatten(1).amax(1) <= INK)
    cells, corner = cells[there], coarse.corner[there] - 1
    votes = colour_votes(cells)
    fine = densest(ink_of(cells, votes.argmax(1)))
    centre = torch.full((len(pixels), 2), torch.nan, dtype=torch.float64)
    centre[there] = corner + fine.corner + _centroid(fine.windows)
    return _Frames(there, alone, fine.windows, votes, centre)


def _cut(light: Tensor, corner: Tensor) -> Tensor:
    """The cell N×3×10×10 around the window at `corner` in each of N×3×32×32."""
    cells = F.pad(light, (1, 1, 1, 1)).unfold(2, 10, 1).unfold(3, 10, 1)
    return cells[torch.arange(len(light)), :, corner[:, 0], corner[:, 1]]


def _centroid(windows: Tensor) -> Tensor:
    """Row and column of the centre of ink in windows M×8×8, of what is more than a quarter of the most."""
    ink = windows * (windows > windows.amax((1, 2), keepdim=True) / 4)
    place = torch.arange(8, dtype=ink.dtype)
    mass = ink.sum((1, 2)).clamp_min(1e-9)
    return torch.stack([ink.sum(2) @ place / mass, ink.sum(1) @ place / mass], 1)
