"""Scores of clips whose right answers are known by construction."""

import json
from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.images import to_float
from rectiflow.data.moving import MovingDigits
from rectiflow.evaluation.adherence_plot import plot_adherence
from rectiflow.evaluation.clip_adherence import clip_adherence, clip_ceiling, clip_imitation, clip_sweep
from rectiflow.evaluation.clip_judge import clip_judge

COUNT = 60
INDEX = torch.arange(COUNT)
NAMES = ("digit", "colour", "direction", "speed", "identity", "strict_identity", "whole", "number")
OTHER = {
    "direction": {"left": "up", "up": "right", "right": "down", "down": "left"},
    "speed": {"slowly": "middle", "middle": "fast", "fast": "slowly"},
}


@pytest.fixture(scope="module")
def reads():
    return clip_judge()


@pytest.fixture(scope="module")
def real():
    return MovingDigits(digits().train, "held out", COUNT)


@pytest.fixture(scope="module")
def pixels(real):
    return to_float(real.fetch(INDEX))


@pytest.fixture(scope="module")
def legible(reads, real, pixels):
    """Indices of clips whose digit every reader reads as it was drawn."""
    readings = reads.read(pixels)
    return [i for i, m in enumerate(real.movements(INDEX)) if all(found[i].digit == m.digit for found in readings)]


def values(scores):
    return {name: getattr(scores, name).value for name in NAMES}


def test_ceilings(reads):
    """All but the digit never fails on real clips; the digits of an unseen hand do."""
    for scores in (clip_ceiling(reads, 60), clip_imitation(reads, 60)):
        for part in (scores.seen, scores.held_out):
            assert part.clips == 30
            found = values(part)
            digit = found.pop("digit")
            assert found.pop("whole") == digit
            assert 0.6 < digit < 1
            assert min(found.values()) >= 0.99


def test_all_is_right_of_what_is_read_rightly(reads, real, pixels, legible):
    movements = real.movements(INDEX)
    scores = clip_adherence(reads, pixels[legible], [movements[i] for i in legible])
    assert scores.seen.clips + scores.held_out.clips == len(legible) > 40
    for part in (scores.seen, scores.held_out):
        assert set(values(part).values()) == {1}
        assert part.whole.error == 0


@pytest.mark.parametrize("name", ["direction", "speed", "digit", "colour"])
def test_what_else_was_asked_for_is_not_there(reads, real, pixels, legible, name):
    """Prompts are changed in one attribute, which is the same as clips changed: that fails, and the whole prompt."""
    movements = [real.movements(INDEX)[i] for i in legible]
    colours = ["red", "green", "blue", "yellow", "cyan", "magenta", "white"]
    asked = [
        replace(
            m,
            **{
                "direction": {"direction": OTHER["direction"][m.direction]},
                "speed": {"speed": OTHER["speed"][m.speed]},
                "digit": {"digit": (m.digit + 1) % 10},
                "colour": {"colour": colours[(colours.index(m.colour) + 1) % 7]},
            }[name],
        )
        for m in movements
    ]
    scores = clip_adherence(reads, pixels[legible], asked)
    for part in (scores.seen, scores.held_out):
        assert values(part) == dict.fromkeys(NAMES, 1) | {name: 0, "whole": 0}


def test_a_second_object_fails_the_whole_prompt(reads, real, pixels, legible):
    """A small bright block in a corner that the digit never comes near; the digit is read as before."""
    movements = [real.movements(INDEX)[i] for i in legible]
    empty = (pixels[legible][..., :8, :8].amax((1, 2, 3, 4)) == -1).tolist()
    chosen = [i for i, free in zip(legible, empty, strict=True) if free]
    worse = pixels[chosen].clone()
    worse[..., 1:4, 1:4] = 1
    scores = clip_adherence(reads, worse, [m for m, free in zip(movements, empty, strict=True) if free])
    for part in (scores.seen, scores.held_out):
        assert part.number.value == part.whole.value == 0
        assert part.identity.value == part.direction.value == 1


def test_errors_are_those_of_as_many_clips(reads, real, pixels):
    movements = real.movements(INDEX)
    share = clip_adherence(reads, pixels, movements).seen.digit
    assert share.count == COUNT // 2
    assert share.error == pytest.approx((share.value * (1 - share.value) / share.count) ** 0.5)
    assert clip_adherence(reads, pixels[::2], movements[::2]).held_out is None


def test_refusals(reads, real, pixels):
    with pytest.raises(InputError, match="as many clips as movements, at least one; received 2 and 3"):
        clip_adherence(reads, pixels[:2], real.movements(INDEX[:3]))
    with pytest.raises(InputError, match="sweep needs"):
        clip_sweep(lambda captions, w: pixels[:1], real.movements(INDEX[1:2]), [0], reads, lambda made: 0)


def test_sweep(reads, real, pixels, monkeypatch, tmp_path):
    """A generator that is best at w=2, by construction: elsewhere it makes some of its clips stand still."""
    for name in ("clip_ceiling", "clip_imitation"):
        monkeypatch.setattr(
            f"rectiflow.evaluation.clip_adherence.{name}",
            lambda judge, frames: clip_adherence(judge, pixels[:20], real.movements(INDEX[:20])),
        )
    movements, asked = real.movements(INDEX[:20]), []

    def make(captions, w):
        asked.append((tuple(captions), w))
        made = pixels[:20].clone()
        made[: int(5 * abs(w - 2))] = made[: int(5 * abs(w - 2)), :, :1]
        return made

    result = clip_sweep(make, movements, [0, 2, 4, 2], reads, lambda made: float(made.mean()))
    assert asked == [(tuple(m.caption for m in movements), w) for w in (0, 2, 4, 2)]
    assert result["best_w"] == 2
    assert [row["w"] for row in result["rows"]] == [0, 2, 4, 2]
    assert [row["seen"]["direction"]["value"] for row in result["rows"]] == [0.5, 1, 0.5, 1]
    assert json.loads(json.dumps(result)) == result
    plot_adherence(result, tmp_path / "adherence.png")
    assert (tmp_path / "adherence.png").read_bytes().startswith(b"\x89PNG")
