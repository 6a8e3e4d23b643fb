"""From a sentence back to its scene: the inverse of `Scene.caption`, and refusals that say what is wrong."""

import re

from rectiflow.base.errors import InputError, unknown
from rectiflow.data.scenes import COLOURS, PLACES, RELATIONS, Scene, Thing

_AT_MOST = 3
_OBJECT = re.compile(r"a (\S+) (\S+)")
_FIRST = {"above": (0, 3), "below": (3, 0), "left of": (0, 1), "right of": (1, 0)}  # places that satisfy a relation


def parse_caption(caption: str) -> Scene:
    """The scene that a sentence of the grammar asks for; its caption is the sentence again.

    A relation names no places: its scene holds the first two that satisfy it, and stands for every other two.

    Raises:
        InputError: not a sentence of the grammar (see `rectiflow.data.scenes`).
    """
    relation = next((name for name in RELATIONS if f" {name} " in caption), "")
    if not caption.isprintable():
        raise _not_a_sentence(caption)
    if relation:
        objects = [(name, place) for name, place in zip(caption.split(f" {relation} "), _FIRST[relation], strict=False)]
        things = [_thing(caption, name, place) for name, place in objects]
    else:
        parts = [part.partition(" in the ") for part in re.split(", | and ", caption)]
        if not all(between for _, between, _ in parts):
            raise _not_a_sentence(caption)
        things = [_thing(caption, name, _place(place)) for name, _, place in parts]
    scene = Scene(tuple(things), relation)
    if scene.caption != caption or len(things) > _AT_MOST:
        raise _not_a_sentence(caption)
    if len({thing.place for thing in things}) < len(things):
        raise InputError(f"'{caption}' puts two objects in one place; expected a place for each.")
    return scene


def holds(relation: str, first: int, second: int) -> bool:
    """Whether an object at the place `first` is `relation` to one at `second`: straight above it, left of it …"""
    (row_1, column_1), (row_2, column_2) = divmod(first, 3), divmod(second, 3)
    if relation in ("above", "below"):
        return column_1 == column_2 and (row_1 < row_2 if relation == "above" else row_1 > row_2)
    return row_1 == row_2 and (column_1 < column_2 if relation == "left of" else column_1 > column_2)


def _thing(caption: str, name: str, place: int) -> Thing:
    parts = _OBJECT.fullmatch(name)
    if not parts:
        raise _not_a_sentence(caption)
    colour, digit = parts.groups()
    if colour not in COLOURS:
        raise unknown("colour", colour, COLOURS)
    if digit not in set("0123456789"):
        raise unknown("digit", digit, "0123456789")
    return Thing(int(digit), colour, place)


def _place(name: str) -> int:
    if name not in PLACES:
        raise unknown("place", name, PLACES)
    return PLACES.index(name)


def _not_a_sentence(caption: str) -> InputError:
    return InputError(
        f"{caption!r} is not a sentence of the grammar; expected one like 'a red 7 in the top left and a blue 3 in the "
        "bottom right', with one to three objects, or 'a red 7 above a blue 3'."
    )
