"""Clips of a coloured digit that moves, whose captions say exactly what is seen.

The grammar, all of it:

    movement  = "a " colour " " digit " moving " direction [" slowly" | " fast"]
    direction = "left" | "right" | "up" | "down"
    colour    = as in `rectiflow.data.scenes`

In frame t the digit is ⌊v·t + ½⌋ whole pixels from where it began, v the pixels a frame of its speed. It lies wholly in
the canvas in every frame.
"""

import re
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.errors import InputError, unknown
from rectiflow.base.randomness import Key
from rectiflow.data.images import Images
from rectiflow.data.scenes import COLOURS, INKS, SEEN, SIDE, by_digit, novel_digit

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
SPEEDS = {"slowly": 0.5, "middle": 1.0, "fast": 1.5}  # pixels a frame
FRAMES = 17
_DIGIT = 8
_MOVEMENT_DRAWS, _PIXEL_DRAWS = 4, 3
_SENTENCE = re.compile(r"a (\S+) (\S+) moving (\S+)(?: (\S+))?")


@dataclass(frozen=True)
class Movement:
    """What is in a clip.

    Args:
        digit: 0 … 9.
        colour: a name of `COLOURS`.
        direction: a name of `DIRECTIONS`.
        speed: a name of `SPEEDS`.
    """

    digit: int
    colour: str
    direction: str
    speed: str

    @property
    def caption(self) -> str:
        """The sentence of the grammar; it says nothing of the middle speed."""
        how = "" if self.speed == "middle" else f" {self.speed}"
        return f"a {self.colour} {self.digit} moving {self.direction}{how}"

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows this digit in this colour: one digit in each colour."""
        return self.digit == novel_digit(self.colour)

    @property
    def is_seen(self) -> bool:
        """Whether training shows this digit in this colour."""
        return not self.is_held_out


def parse_movement(caption: str) -> Movement:
    """The movement that a sentence of the grammar asks for; its caption is the sentence again.

    Raises:
        InputError: not a sentence of the grammar (see `rectiflow.data.moving`).
    """
    parts = _SENTENCE.fullmatch(caption)
    if not parts or not caption.isprintable():
        raise InputError(
            f"{caption!r} is not a sentence of the grammar; expected one like 'a green 5 moving left', with ' slowly' "
            "or ' fast' behind it or nothing."
        )
    colour, digit, direction, speed = parts.groups()
    said = [name for name in SPEEDS if name != "middle"]
    if colour not in COLOURS:
        raise unknown("colour", colour, COLOURS)
    if digit not in set("0123456789"):
        raise unknown("digit", digit, "0123456789")
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    if speed is not None and speed not in said:
        raise unknown("speed", speed, said)
    return Movement(int(digit), colour, direction, speed or "middle")


@final
class MovingDigits(Images):
    """Clips drawn when asked for; clip i of a part is a function of i alone.

    Args:
        digits: the digits to draw with (1×8×8), as many writers as the part may show.
        part: "train": no held-out combination; any other name: every second clip has one.
        count: number of clips.
        frames: T, 5, 9, 13 or 17.

    Raises:
        InputError: another number of frames; one line.
    """

    captioned = True

    def __init__(self, digits: Images, part: str, count: int, frames: int = FRAMES) -> None:
        _refuse_frames(frames)
        self.part, self.shape = part, (3, frames, SIDE, SIDE)
        self.labels = torch.full((count,), -1)
        examples = by_digit(digits)
        inked = [(np.concatenate(examples)[:, None] * INKS[name]).round().astype(np.uint8) for name in COLOURS]
        self._inked = torch.from_numpy(np.stack(inked, 1))  # N×7×3×8×8
        self._counts = torch.tensor([len(each) for each in examples])

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """uint8 clips B×3×T×32×32 of the movements at `index`."""
        digit, colour, direction, speed = self._attributes(index).unbind(1)
        which, along, across = self._draws("pixels", index, _PIXEL_DRAWS).unbind(1)
        first = self._counts.cumsum(0) - self._counts
        patch = self._inked[first[digit] + (which * self._counts[digit]).long(), colour]  # B×3×8×8
        frames, room = self.shape[1], SIDE - _DIGIT
        rates = torch.tensor(list(SPEEDS.values()), dtype=torch.float64)[speed]
        moved = (rates[:, None] * torch.arange(frames) + 0.5).long()  # B×T
        travel = moved[:, -1]
        start = (along * (room - travel + 1)).long()
        step = torch.tensor(list(DIRECTIONS.values()))[direction]  # B×2
        forth = step.sum(1) > 0
        on_line = torch.where(forth, start, start + travel)[:, None] + step.sum(1)[:, None] * moved
        off_line = (across * (room + 1)).long()[:, None].expand_as(on_line)
        upright = (step[:, 0] != 0)[:, None]
        top, left = torch.where(upright, on_line, off_line), torch.where(upright, off_line, on_line)
        inside = SIDE * torch.arange(_DIGIT)[:, None] + torch.arange(_DIGIT)
        corner = SIDE * (SIDE * torch.arange(frames) + top) + left
        where = (corner[..., None] + inside.flatten()).flatten(1)[:, None].expand(-1, 3, -1)
        ink = patch.flatten(2).repeat(1, 1, frames)
        clips = torch.zeros((len(index), 3, frames * SIDE * SIDE), dtype=torch.uint8)
        return clips.scatter_(2, where, ink).reshape(len(index), *self.shape)

    def movements(self, index: Tensor) -> list[Movement]:
        """What is in the clips at `index`."""
        names = tuple(COLOURS), tuple(DIRECTIONS), tuple(SPEEDS)
        return [Movement(d, names[0][c], names[1][w], names[2][s]) for d, c, w, s in self._attributes(index).tolist()]

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The sentences of the movements at `index`."""
        return [movement.caption for movement in self.movements(index)]

    def _draws(self, purpose: str, index: Tensor, count: int) -> Tensor:
        return Key(0, f"digit-clips {self.part} {purpose}").uniform(index, (count,))

    def _attributes(self, index: Tensor) -> Tensor:
        """B×4: digit, and the numbers of colour, direction and speed."""
        draws = self._draws("movement", index, _MOVEMENT_DRAWS)
        colours = list(COLOURS)
        seen = torch.tensor([[digit, colours.index(colour)] for digit, colour in SEEN])
        novel = torch.tensor([[novel_digit(colour), number] for number, colour in enumerate(colours)])
        pairs = seen[(draws[:, 0] * len(seen)).long()]
        if self.part != "train":
            other = novel[(draws[:, 3] * len(novel)).long()]
            pairs = torch.where((index % 2 == 1)[:, None], other, pairs)
        path = draws[:, 1:3] * torch.tensor([len(DIRECTIONS), len(SPEEDS)])
        return torch.cat([pairs, path.long()], 1)


def _refuse_frames(frames: int) -> None:
    known = range(5, FRAMES + 1, 4)
    if frames not in known:
        nearest = min(known, key=lambda count: (abs(count - frames), -count))
        raise InputError(
            f"a clip of digit-clips has 5, 9, 13 or 17 frames (1 + 4k, and a fast digit crosses the canvas in 17), "
            f"received {frames}; the nearest is {nearest}."
        )
