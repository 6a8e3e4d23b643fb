"""Sentences and scenes are each other's inverse, and what is no sentence is refused in one line."""

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digit_scenes
from rectiflow.data.grammar import holds, parse_caption
from rectiflow.data.scenes import RELATIONS, Scene, Thing


def test_every_caption_is_read_back():
    data = digit_scenes()
    for part in (data.train, data.held_out):
        for scene in part.scenes(torch.arange(2000)):
            found = parse_caption(scene.caption)
            assert found.caption == scene.caption
            assert found.is_seen == scene.is_seen
            if scene.relation:
                first, second = (thing.place for thing in found.things)
                assert found.relation == scene.relation
                assert holds(found.relation, first, second)
            else:
                assert found == scene


def test_a_sentence_and_its_scene():
    assert parse_caption("a red 7 in the top left and a blue 3 in the bottom right") == Scene(
        (Thing(7, "red", 0), Thing(3, "blue", 8))
    )


def test_relations_hold_as_scenes_are_drawn():
    for scene in digit_scenes().train.scenes(torch.arange(1000)):
        if scene.relation:
            places = [thing.place for thing in scene.things]
            assert [name for name in RELATIONS if holds(name, *places)] == [scene.relation]


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("", "not a sentence"),
        ("a red 7", "not a sentence"),
        ("red 7 in the top left", "not a sentence"),
        ("A red 7 in the top left", "not a sentence"),
        ("a red 7 in the top left.", "place"),
        ("a red 7 in the top left ", "place"),
        ("a red 7 in the top left\nand a blue 3 in the middle", "not a sentence"),
        ("a rde 7 in the top left", "Did you mean 'red'"),
        ("a red 17 in the top left", "digit '17'"),
        ("a red seven in the top left", "digit"),
        ("a red ٧ in the top left", "digit"),
        ("a red 7 in the top centre", "Did you mean 'top"),
        ("a red 7 in the left", "place 'left'"),
        ("a red 7 in the top left, a blue 3 in the middle", "not a sentence"),
        ("a red 7 in the top left and a blue 3 in the middle and a red 1 in the top right", "not a sentence"),
        (
            "a red 1 in the top left, a red 1 in the top right, a red 1 in the middle and a red 1 in the bottom left",
            "not",
        ),
        ("a red 7 in the middle and a blue 3 in the middle", "two objects in one place"),
        ("a red 7 above a blue 3 above a green 1", "not a sentence"),
        ("a red 7 above a blue 3 in the top left", "not a sentence"),
        ("a red 7 left a blue 3", "not a sentence"),
    ],
)
def test_no_sentence(caption, says):
    with pytest.raises(InputError, match=says) as refusal:
        parse_caption(caption)
    assert "\n" not in str(refusal.value)
