"""Scenes of coloured digits whose captions say exactly what is in them.

The grammar, all of it:

    scene    = placed | placed " and " placed | placed ", " placed " and " placed | object relation object
    placed   = object " in the " place
    object   = "a " colour " " digit
    relation = " above " | " below " | " left of " | " right of "
    place    = "top left" | "top middle" | "top right" | "middle left" | "middle" | … | "bottom right"
    colour   = "red" | "green" | "blue" | "yellow" | "cyan" | "magenta" | "white"

No two objects share a place. Of two objects in a relation, one lies straight above (or left of) the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.data.images import Images

COLOURS = {
    "red": (255, 48, 48),
    "green": (32, 220, 64),
    "blue": (64, 96, 255),
    "yellow": (255, 230, 32),
    "cyan": (32, 230, 240),
    "magenta": (240, 48, 240),
    "white": (255, 255, 255),
}
PLACES = tuple(
    "middle" if (row, column) == ("middle", "middle") else f"{row} {column}"
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)
RELATIONS = ("above", "below", "left of", "right of")
SIDE, _CELL, _DIGIT = 32, 10, 8
_RELATED = 0.25  # share of scenes told by a relation
_SCENE_DRAWS, _PIXEL_DRAWS = 16, 12


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Args:
        digit: 0 … 9.
        colour: a name of `COLOURS`.
        place: index into `PLACES`, row by row.
    """

    digit: int
    colour: str
    place: int

    @property
    def name(self) -> str:
        """As the caption says it."""
        return f"a {self.colour} {self.digit}"

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows this digit in this colour: one digit in each colour."""
        return self.digit == novel_digit(self.colour)


@dataclass(frozen=True)
class Scene:
    """What is in a picture.

    Args:
        things: one to three objects.
        relation: a name of `RELATIONS`, of the first to the second; empty if places are named.
    """

    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        """The sentence of the grammar."""
        if self.relation:
            return f"{self.things[0].name} {self.relation} {self.things[1].name}"
        placed = [f"{thing.name} in the {PLACES[thing.place]}" for thing in self.things]
        return " and ".join([", ".join(placed[:-1]), placed[-1]] if placed[1:] else placed)

    @property
    def is_seen(self) -> bool:
        """Whether each of its digits has its colour in training too."""
        return not any(thing.is_held_out for thing in self.things)


def novel_digit(colour: str) -> int:
    """The digit that training never shows in a colour."""
    return 3 * list(COLOURS).index(colour) % 10


def by_digit(digits: Images) -> list[np.ndarray]:
    """The ink in [0, 1] of the examples of each digit 0 … 9: n×8×8."""
    levels = (digits.fetch(torch.arange(len(digits)))[:, 0] + 1) / 2
    return [levels[digits.labels == digit].numpy() for digit in range(10)]


SEEN = [(digit, colour) for digit in range(10) for colour in COLOURS if digit != novel_digit(colour)]
INKS = {name: np.array(colour, dtype=np.float64)[:, None, None] for name, colour in COLOURS.items()}


@final
class Scenes(Images):
    """Scenes drawn when asked for; scene i of a part is a function of i alone.

    Args:
        digits: the digits to draw with (1×8×8), as many writers as the part may show.
        part: "train": no held-out combination; any other name: every second scene has one.
        count: number of scenes.
    """

    captioned = True

    def __init__(self, digits: Images, part: str, count: int) -> None:
        self.part, self.shape = part, (3, SIDE, SIDE)
        self.labels = torch.full((count,), -1)
        self._digits = by_digit(digits)

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """uint8 pictures of the scenes at `index`."""
        draws = self._draws("pixels", index, _PIXEL_DRAWS).tolist()
        pixels = np.zeros((len(index), 3, SIDE, SIDE), dtype=np.float32)
        for picture, scene, row in zip(pixels, self.scenes(index), draws, strict=True):
            for number, thing in enumerate(scene.things):
                which, down, right = row[3 * number : 3 * number + 3]
                examples = self._digits[thing.digit]
                top = 1 + _CELL * (thing.place // 3) + int(3 * down)
                left = 1 + _CELL * (thing.place % 3) + int(3 * right)
                ink = INKS[thing.colour] * examples[int(which * len(examples))]
                picture[:, top : top + _DIGIT, left : left + _DIGIT] = ink
        return torch.from_numpy(pixels.round().astype(np.uint8))

    def scenes(self, index: Tensor) -> list[Scene]:
        """What is in the pictures at `index`."""
        rows = self._draws("scene", index, _SCENE_DRAWS).tolist()
        return [self._scene(number, row) for number, row in zip(index.tolist(), rows, strict=True)]

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The sentences of the scenes at `index`."""
        return [scene.caption for scene in self.scenes(index)]

    def _draws(self, purpose: str, index: Tensor, count: int) -> np.ndarray:
        return Key(0, f"digit-scenes {self.part} {purpose}").uniform(index, (count,)).numpy()

    def _scene(self, number: int, draws: Sequence[float]) -> Scene:
        relation = RELATIONS[int(draws[0] * 4)] if draws[1] < _RELATED else ""
        count = 2 if relation else 1 + int(draws[2] * 3)
        places = _related(relation, draws[3:6]) if relation else _choose(9, count, draws[3:6])
        things = [Thing(*SEEN[int(draws[6 + 2 * i] * len(SEEN))], place) for i, place in enumerate(places)]
        if self.part != "train" and number % 2:
            colour = list(COLOURS)[int(draws[12] * len(COLOURS))]
            things[int(draws[13] * count)] = Thing(novel_digit(colour), colour, places[int(draws[13] * count)])
        return Scene(tuple(things), relation)


def _choose(count: int, chosen: int, draws: Sequence[float]) -> list[int]:
    """`chosen` different numbers below `count`."""
    left = list(range(count))
    return [left.pop(int(draw * len(left))) for draw in draws[:chosen]]


def _related(relation: str, draws: Sequence[float]) -> list[int]:
    """Places of two objects of which the first is `relation` to the second."""
    line = int(draws[0] * 3)
    first, second = sorted(_choose(3, 2, draws[1:3]))
    if relation in ("below", "right of"):
        first, second = second, first
    if relation in ("above", "below"):
        return [3 * first + line, 3 * second + line]
    return [3 * line + first, 3 * line + second]
