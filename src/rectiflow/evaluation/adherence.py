"""Adherence: how many of the attributes that prompts ask for are in their pictures, by a judge who isn't told them.

An object is looked for where its prompt puts it, or, for a relation, in the two places that satisfy it and agree best
with the prompt. Its place is right if something is there, its colour and its digit if they are those of what is there;
so nothing is right of an object that is elsewhere. A whole prompt is right if everything is, and nothing is there
besides.

Two references stand beside a generator. The ceiling: real scenes of held-out writers, each read by the reader that has
not seen the writer. Real scenes of the training writers: what a generator would get that imitates them perfectly; no
reader has seen these either. Which writers are easier to read decides which of the two is higher.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Protocol

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.grammar import holds
from rectiflow.data.images import to_float
from rectiflow.data.scenes import Scene, Scenes, Thing
from rectiflow.evaluation.judge import Judge

_ATTRIBUTES = ("place", "colour", "digit")


@dataclass(frozen=True)
class Share:
    """A share of what was asked for.

    Args:
        value: 0 … 1, mean over the readers.
        error: its binomial standard error √(p(1−p)/n). Readers of one picture agree too often to count as more of them.
        count: n, objects or pictures.
    """

    value: float
    error: float
    count: int


@dataclass(frozen=True)
class Scores:
    """The scores of some prompts.

    Args:
        pictures: how many.
        place: share of objects that are where they should be.
        colour: share of objects with their colour, there.
        digit: share of objects with their digit, there.
        whole: share of pictures with all of it right, and nothing besides.
        number: share of pictures with as many objects as asked for.
    """

    pictures: int
    place: Share
    colour: Share
    digit: Share
    whole: Share
    number: Share


@dataclass(frozen=True)
class AdherenceScores:
    """The scores of prompts whose combinations of digit and colour were all in training, and of the others.

    Args:
        seen: None if there are no such prompts.
        held_out: likewise; the attributes are those of the objects in a held-out combination alone, the whole prompts
            have other objects too.
    """

    seen: Scores | None
    held_out: Scores | None


def adherence(judge: Judge, pixels: Tensor, scenes: Sequence[Scene]) -> AdherenceScores:
    """The scores of pictures N×3×32×32 in [−1, 1], made for the captions of N scenes.

    Raises:
        InputError: pictures of another shape or number, or none.
    """
    check_counts(len(pixels), len(scenes))
    return _scores(judge.read(pixels), scenes)


def ceiling(judge: Judge, count: int = 1000) -> AdherenceScores:
    """The same of `count` real scenes, drawn with the digits of each held-out writer for the reader that has not seen
    these; half of them with a held-out combination.
    """
    index, readings = torch.arange(count), []
    for reader, writer in enumerate(judge.writers):
        real = Scenes(writer, "held out", count)
        readings.append(judge.read(to_float(real.fetch(index)))[reader])
    return _scores(readings, real.scenes(index))


def imitation(judge: Judge, count: int = 1000) -> AdherenceScores:
    """The same of `count` real scenes of the training writers, the most that imitating them can bring."""
    index, real = torch.arange(count), Scenes(digits().train, "held out", count)
    return adherence(judge, to_float(real.fetch(index)), real.scenes(index))


def sweep(
    make: Callable[[Sequence[str], float], Tensor],
    scenes: Sequence[Scene],
    weights: Sequence[float],
    judge: Judge,
    distance: Callable[[Tensor], float],
) -> dict[str, Any]:
    """Adherence and a Fréchet distance for each guidance strength, with the references, ready for JSON.

    Args:
        make: captions and w to pictures N×3×32×32 in [−1, 1].
        scenes: whose captions are the prompts, the same ones for each w; some of seen combinations.
        weights: the guidance strengths w ≥ 0.
        judge: who reads the pictures.
        distance: of the pictures to real ones.

    Returns:
        As `over_weights`, and "ceiling" and "imitation": references, as in a row.

    Raises:
        InputError: no weight, or no scene of seen combinations.
    """
    found = over_weights(make, scenes, weights, lambda pixels: asdict(adherence(judge, pixels, scenes)), distance)
    return found | {"ceiling": asdict(ceiling(judge)), "imitation": asdict(imitation(judge))}


class Asked(Protocol):
    """What a prompt asks for: a scene, or a movement."""

    @property
    def caption(self) -> str:
        """The prompt."""

    @property
    def is_seen(self) -> bool:
        """Whether each digit has its colour in training too."""


def over_weights(
    make: Callable[[Sequence[str], float], Tensor],
    asked: Sequence[Asked],
    weights: Sequence[float],
    score: Callable[[Tensor], dict[str, Any]],
    distance: Callable[[Tensor], float],
) -> dict[str, Any]:
    """Scores and a Fréchet distance for each guidance strength, ready for JSON.

    Args:
        make: captions and w to pictures or clips in [−1, 1].
        asked: whose captions are the prompts, the same ones for each w; some of seen combinations.
        weights: the guidance strengths w ≥ 0.
        score: of what was made: "seen" and "held_out", with the share of "whole" prompts among others.
        distance: of what was made to real pictures or clips.

    Returns:
        "rows": a dict for each w of "w", "frechet", "seen" and "held_out"; "best_w": the w, the smallest of equal ones,
        with the most whole prompts of seen combinations.

    Raises:
        InputError: no weight, or no prompt of seen combinations.
    """
    if not weights or not any(each.is_seen for each in asked):
        raise InputError("a sweep needs a guidance strength, and a prompt without held-out combinations, to choose by.")
    captions, rows = [each.caption for each in asked], []
    for weight in weights:
        pixels = make(captions, weight)
        rows.append({"w": weight, "frechet": distance(pixels)} | score(pixels))
    best = max(rows, key=lambda row: (row["seen"]["whole"]["value"], -row["w"]))
    return {"rows": rows, "best_w": best["w"]}


def _scores(readings: Sequence[Sequence[tuple[Thing, ...]]], scenes: Sequence[Scene]) -> AdherenceScores:
    """Of one list for each reader, of what it found in each picture."""
    parts = []
    for seen in (True, False):
        chosen = [i for i, scene in enumerate(scenes) if scene.is_seen == seen]
        parts.append(_part([[found[i] for i in chosen] for found in readings], [scenes[i] for i in chosen], seen))
    return AdherenceScores(*parts)


def _part(readings: Sequence[Sequence[tuple[Thing, ...]]], scenes: Sequence[Scene], seen: bool) -> Scores | None:
    if not scenes:
        return None
    right: dict[str, list[bool]] = {name: [] for name in (*_ATTRIBUTES, "whole", "number")}
    for found in readings:
        for things, scene in zip(found, scenes, strict=True):
            marks = [_marks(*pair) for pair in zip(_matched(things, scene), scene.things, strict=True)]
            for mark, thing in zip(marks, scene.things, strict=True):
                if seen or thing.is_held_out:
                    for name, value in zip(_ATTRIBUTES, mark, strict=True):
                        right[name].append(value)
            as_many = len(things) == len(scene.things)
            right["number"].append(as_many)
            right["whole"].append(as_many and all(map(all, marks)))
    return Scores(len(scenes), **{name: share(values, len(readings)) for name, values in right.items()})


def _matched(found: Sequence[Thing], scene: Scene) -> Iterable[Thing | None]:
    """What was found for each object of the scene; None for nothing."""
    if not scene.relation:
        there = {thing.place: thing for thing in found}
        return [there.get(thing.place) for thing in scene.things]
    pairs = [pair for pair in permutations(found, 2) if holds(scene.relation, pair[0].place, pair[1].place)]
    return max(
        pairs,
        key=lambda pair: sum(sum(_marks(*both)) for both in zip(pair, scene.things, strict=True)),
        default=(None, None),
    )


def _marks(found: Thing | None, asked: Thing) -> tuple[bool, bool, bool]:
    """Place, colour and digit: whether each is right of what was found where the object should be."""
    if found is None:
        return False, False, False
    return True, found.colour == asked.colour, found.digit == asked.digit


def share(right: Sequence[bool], readers: int) -> Share:
    """The share of what so many readers found right, one reader's after the other's."""
    count, value = len(right) // readers, sum(right) / len(right)
    return Share(value, (value * (1 - value) / count) ** 0.5, count)


def check_counts(pictures: int, asked: int, what: str = "pictures as scenes") -> None:
    """Nothing, if there are as many, at least one.

    Raises:
        InputError: they are not.
    """
    if pictures != asked or not asked:
        raise InputError(f"expected as many {what}, at least one; received {pictures} and {asked}.")
