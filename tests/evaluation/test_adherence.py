"""Scores of pictures whose right answers are known by construction."""

import json
from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.grammar import parse_caption
from rectiflow.data.images import to_float
from rectiflow.data.scenes import COLOURS, RELATIONS, Scene, Scenes, Thing
from rectiflow.evaluation.adherence import adherence, ceiling, imitation, sweep
from rectiflow.evaluation.adherence_plot import plot_adherence
from rectiflow.evaluation.judge import judge

COUNT = 300
INDEX = torch.arange(COUNT)


@pytest.fixture(scope="module")
def reads():
    return judge()


@pytest.fixture(scope="module")
def real():
    return Scenes(digits().train, "held out", COUNT)


@pytest.fixture(scope="module")
def pixels(real):
    return to_float(real.fetch(INDEX))


@pytest.fixture(scope="module")
def legible(reads, real, pixels):
    """Indices of pictures that every reader reads as they were drawn."""
    scenes, readings = real.scenes(INDEX), reads.read(pixels)
    return [i for i in range(COUNT) if all(set(reading[i]) == set(scenes[i].things) for reading in readings)]


def values(scores):
    return {name: getattr(scores, name).value for name in ("place", "colour", "digit", "whole", "number")}


def changed(scene, **attribute):
    """The scene with a function of each object in place of an attribute."""
    ((name, change),) = attribute.items()
    return replace(scene, things=tuple(replace(thing, **{name: change(thing)}) for thing in scene.things))


def next_colour(thing):
    names = list(COLOURS)
    return names[(names.index(thing.colour) + 1) % len(names)]


def test_ceilings(reads):
    """Place and colour never fail on real scenes; the digits of an unseen hand do."""
    for scores in (ceiling(reads, 200), imitation(reads, 200)):
        for part in (scores.seen, scores.held_out):
            assert part.pictures == 100
            assert min(part.place.value, part.colour.value, part.number.value) >= 0.99
            assert part.digit.value > 0.8
            assert part.whole.value < part.digit.value
    assert imitation(reads, 200).seen.digit.value > 0.88


def test_all_is_right_of_what_is_read_rightly(reads, real, pixels, legible):
    scenes = real.scenes(INDEX)
    scores = adherence(reads, pixels[legible], [scenes[i] for i in legible])
    for part in (scores.seen, scores.held_out):
        assert set(values(part).values()) == {1}
        assert part.whole.error == 0
    assert scores.seen.pictures + scores.held_out.pictures == len(legible)


def test_a_picture_answers_to_its_parsed_caption(reads, real, pixels):
    """A relation's places are the picture's own to choose."""
    scenes = real.scenes(INDEX)
    parsed = [parse_caption(scene.caption) for scene in scenes]
    assert sum(scene != other for scene, other in zip(scenes, parsed, strict=True)) > 30
    assert adherence(reads, pixels, scenes) == adherence(reads, pixels, parsed)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_other_relation_is_not_right(reads, real, pixels, legible, relation):
    scenes = real.scenes(INDEX)
    chosen = [i for i in legible if scenes[i].relation == relation]
    for other in RELATIONS:
        asked = [replace(scenes[i], relation=other) for i in chosen]
        scores = adherence(reads, pixels[chosen], asked)
        for part in (scores.seen, scores.held_out):
            if other == relation:
                assert values(part)["whole"] == 1
            else:
                # Of the opposite relation the two are there, each in the other's stead.
                assert part is None or part.whole.value <= 0.1


def test_changed_colours_fail_colour_alone(reads, real, pixels, legible):
    """So do changed digits. Prompts are changed, which is the same; combinations then change sides, hence the sums."""
    scenes = real.scenes(INDEX)
    placed = [i for i in legible if not scenes[i].relation]
    for attribute, change in (("colour", next_colour), ("digit", lambda thing: (thing.digit + 1) % 10)):
        asked = [changed(scenes[i], **{attribute: change}) for i in placed]
        scores = adherence(reads, pixels[placed], asked)
        for part in (scores.seen, scores.held_out):
            right = {"place": 1, "colour": 1, "digit": 1, "whole": 0, "number": 1} | {attribute: 0}
            assert values(part) == right


def test_an_object_too_many_fails_the_whole_prompt_alone(reads, real, pixels, legible):
    scenes = real.scenes(INDEX)
    chosen = [i for i in legible if len(scenes[i].things) > 1 and not scenes[i].relation]
    asked = [replace(scenes[i], things=scenes[i].things[1:]) for i in chosen]
    for part in (scores := adherence(reads, pixels[chosen], asked)).seen, scores.held_out:
        assert values(part) == {"place": 1, "colour": 1, "digit": 1, "whole": 0, "number": 0}


def test_an_object_too_few(reads, real, pixels, legible):
    """Of two objects asked for one is there: half of everything, nothing whole."""
    scenes = real.scenes(INDEX)
    chosen = [i for i in legible if len(scenes[i].things) == 1 and scenes[i].is_seen]
    more = [Thing(1, "red", (scenes[i].things[0].place + 1) % 9) for i in chosen]
    asked = [Scene((*scenes[i].things, thing)) for i, thing in zip(chosen, more, strict=True)]
    scores = adherence(reads, pixels[chosen], asked).seen
    assert values(scores) == {"place": 0.5, "colour": 0.5, "digit": 0.5, "whole": 0, "number": 0}
    assert scores.place.count == 2 * len(chosen)
    assert scores.place.error == pytest.approx((0.25 / (2 * len(chosen))) ** 0.5)


def test_an_object_elsewhere_is_not_there(reads, real, pixels, legible):
    scenes = real.scenes(INDEX)
    chosen = [i for i in legible if len(scenes[i].things) == 1]
    asked = [changed(scenes[i], place=lambda thing: (thing.place + 1) % 9) for i in chosen]
    scores = adherence(reads, pixels[chosen], asked)
    assert values(scores.seen) == {"place": 0, "colour": 0, "digit": 0, "whole": 0, "number": 1}


def test_shuffled_attributes_are_right_by_chance(reads):
    """Each object asked for where one is, but in the colour and with the digit of another picture's."""
    count = 1000
    index, real = torch.arange(count), Scenes(digits().train, "train", count)
    scenes = [scene for scene in real.scenes(index) if not scene.relation]
    kept = torch.tensor([not scene.relation for scene in real.scenes(index)])
    others = [thing for scene in scenes for thing in scene.things]
    others = iter(others[7:] + others[:7])
    asked = [Scene(tuple(replace(next(others), place=thing.place) for thing in scene.things)) for scene in scenes]
    scores = adherence(reads, to_float(real.fetch(index))[kept], asked).seen
    assert scores.place.value == 1
    assert scores.colour.value == pytest.approx(1 / 7, abs=4 * scores.colour.error)
    assert scores.digit.value == pytest.approx(1 / 10, abs=4 * scores.digit.error)
    assert scores.whole.value < 0.03


def test_held_out_attributes_are_of_held_out_combinations(reads, real, pixels):
    scenes = real.scenes(INDEX)
    held_out = [thing.is_held_out for scene in scenes for thing in scene.things]
    scores = adherence(reads, pixels, scenes)
    assert scores.held_out.colour.count == sum(held_out)
    assert scores.held_out.whole.count == scores.held_out.pictures == COUNT // 2
    assert scores.seen.colour.count == sum(len(scene.things) for scene in scenes if scene.is_seen)
    assert adherence(reads, pixels[::2], scenes[::2]).held_out is None


def test_refusals(reads, real, pixels):
    with pytest.raises(InputError, match="received 2 and 3"):
        adherence(reads, pixels[:2], real.scenes(INDEX[:3]))
    with pytest.raises(InputError, match="received 0 and 0"):
        adherence(reads, pixels[:0], [])
    with pytest.raises(InputError, match="sweep needs"):
        sweep(lambda captions, w: pixels[:1], real.scenes(INDEX[1:2]), [0], reads, lambda made: 0)


def test_sweep(reads, real, pixels, tmp_path):
    """A generator that is best at w=2, by construction, with the noise of one that is worse elsewhere."""
    scenes, asked = real.scenes(INDEX[:60]), []
    noise = torch.randn((60, 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def make(captions, w):
        asked.append((tuple(captions), w))
        return pixels[:60] + 0.4 * abs(w - 2) * noise

    result = sweep(make, scenes, [0, 2, 4, 2], reads, lambda made: float((made - pixels[:60]).square().mean()))
    assert asked == [(tuple(scene.caption for scene in scenes), w) for w in (0, 2, 4, 2)]
    assert result["best_w"] == 2
    assert [row["w"] for row in result["rows"]] == [0, 2, 4, 2]
    assert result["rows"][1]["frechet"] == 0 < result["rows"][0]["frechet"]
    assert result["rows"][1]["seen"]["whole"]["value"] > result["rows"][0]["seen"]["whole"]["value"]
    assert json.loads(json.dumps(result)) == result
    assert result["ceiling"]["held_out"]["place"]["value"] > 0.99
    plot_adherence(result, tmp_path / "adherence.png")
    assert (tmp_path / "adherence.png").read_bytes().startswith(b"\x89PNG")
    for row in result["rows"]:
        row["held_out"] = None
    plot_adherence(result, tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size < (tmp_path / "adherence.png").stat().st_size
