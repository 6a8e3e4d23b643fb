"""Adherence of clips: how often what a prompt asks for is seen, by a judge who isn't told it.

Digit, colour, direction and speed are right if they are those that the judge reads of the clip; identity holds or not
whatever was asked for. A whole prompt is right if all of it is, identity holds, and nothing is there besides.

Two references stand beside a generator, as for scenes. The ceiling: real clips of held-out writers, each read by the
reader that has not seen the writer. Real clips of the training writers: what a perfect imitation of these would get.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rectiflow.data.builtin import digits
from rectiflow.data.images import to_float
from rectiflow.data.moving import FRAMES, Movement, MovingDigits
from rectiflow.evaluation.adherence import Share, check_counts, over_weights, share
from rectiflow.evaluation.clip_judge import ClipJudge, Reading

_ASKED = ("digit", "colour", "direction", "speed")


@dataclass(frozen=True)
class ClipScores:
    """The scores of some prompts, shares of their clips.

    Args:
        clips: how many.
        digit: of which most frames show the digit.
        colour: likewise.
        direction: that move where they should.
        speed: that move along one of the directions, as fast as they should.
        identity: that show one digit in one colour in all frames, but one in ten.
        strict_identity: in all frames.
        whole: with all of it right, identity, and nothing besides.
        number: with one object, and no other, in all frames, but one in ten.
    """

    clips: int
    digit: Share
    colour: Share
    direction: Share
    speed: Share
    identity: Share
    strict_identity: Share
    whole: Share
    number: Share


@dataclass(frozen=True)
class ClipAdherence:
    """The scores of prompts whose combination of digit and colour was in training, and of the others.

    Args:
        seen: None if there are no such prompts.
        held_out: likewise.
    """

    seen: ClipScores | None
    held_out: ClipScores | None


def clip_adherence(judge: ClipJudge, pixels: Tensor, movements: Sequence[Movement]) -> ClipAdherence:
    """The scores of clips N×3×T×32×32 in [−1, 1], made for the captions of N movements.

    Raises:
        InputError: clips of another shape or number, or none.
    """
    check_counts(len(pixels), len(movements), "clips as movements")
    return _scores(judge.read(pixels), movements)


def clip_ceiling(judge: ClipJudge, count: int = 500, frames: int = FRAMES) -> ClipAdherence:
    """The same of `count` real clips, drawn with the digits of each held-out writer for the reader that has not seen
    these; half of them with a held-out combination.
    """
    index, readings = torch.arange(count), []
    for reader, writer in enumerate(judge.pictures.writers):
        real = MovingDigits(writer, "held out", count, frames)
        readings.append(judge.read(to_float(real.fetch(index)))[reader])
    return _scores(readings, real.movements(index))


def clip_imitation(judge: ClipJudge, count: int = 500, frames: int = FRAMES) -> ClipAdherence:
    """The same of `count` real clips of the training writers, the most that imitating them can bring."""
    index, real = torch.arange(count), MovingDigits(digits().train, "held out", count, frames)
    return clip_adherence(judge, to_float(real.fetch(index)), real.movements(index))


def clip_sweep(
    make: Callable[[Sequence[str], float], Tensor],
    movements: Sequence[Movement],
    weights: Sequence[float],
    judge: ClipJudge,
    distance: Callable[[Tensor], float],
    frames: int = FRAMES,
) -> dict[str, Any]:
    """Adherence and a Fréchet distance for each guidance strength, with the references; as `sweep`, of clips
    N×3×T×32×32 of T = `frames`.

    Raises:
        InputError: no weight, or no movement of seen combinations.
    """

    def score(pixels: Tensor) -> dict[str, Any]:
        return asdict(clip_adherence(judge, pixels, movements))

    found = over_weights(make, movements, weights, score, distance)
    references = {"ceiling": clip_ceiling, "imitation": clip_imitation}
    return found | {name: asdict(real(judge, frames=frames)) for name, real in references.items()}


def _scores(readings: Sequence[Sequence[Reading]], movements: Sequence[Movement]) -> ClipAdherence:
    """Of one list for each reader, of what it read in each clip."""
    parts = []
    for seen in (True, False):
        chosen = [i for i, movement in enumerate(movements) if movement.is_seen == seen]
        parts.append(_part([[found[i] for i in chosen] for found in readings], [movements[i] for i in chosen]))
    return ClipAdherence(*parts)


def _part(readings: Sequence[Sequence[Reading]], movements: Sequence[Movement]) -> ClipScores | None:
    if not movements:
        return None
    right: dict[str, list[bool]] = {}
    for found in readings:
        for reading, movement in zip(found, movements, strict=True):
            marks = {name: getattr(reading, name) == getattr(movement, name) for name in _ASKED}
            marks["identity"] = reading.identity
            marks["whole"] = all(marks.values()) and reading.alone
            marks |= {"strict_identity": reading.strict_identity, "number": reading.alone}
            for name, value in marks.items():
                right.setdefault(name, []).append(value)
    return ClipScores(len(movements), **{name: share(values, len(readings)) for name, values in right.items()})
