"""The caption of a scene says exactly what its pixels show."""

import re

import numpy as np
import pytest
import torch

from rectiflow.data.builtin import digit_scenes
from rectiflow.data.scenes import COLOURS, PLACES, RELATIONS

OBJECT = rf"a (?:{'|'.join(COLOURS)}) \d"
PLACED = rf"{OBJECT} in the (?:{'|'.join(sorted(PLACES, key=len, reverse=True))})"
GRAMMAR = re.compile(
    rf"{PLACED}|{PLACED} and {PLACED}|{PLACED}, {PLACED} and {PLACED}|{OBJECT} (?:{'|'.join(RELATIONS)}) {OBJECT}"
)
INDEX = torch.arange(300)


@pytest.fixture(scope="module")
def data():
    return digit_scenes()


def test_every_caption_is_a_sentence_of_the_grammar(data):
    for part in (data.train, data.held_out):
        captions = [scene.caption for scene in part.scenes(INDEX)]
        assert [caption for caption in captions if not GRAMMAR.fullmatch(caption)] == []
        assert len(set(captions)) > 200


def test_pixels_show_what_the_scene_says(data):
    """In each cell of the canvas: empty, or the colour that the scene names there."""
    pixels = data.train.fetch(INDEX).numpy().astype(float)
    for picture, scene in zip(pixels, data.train.scenes(INDEX), strict=True):
        named = {thing.place: thing.colour for thing in scene.things}
        assert len(named) == len(scene.things)
        for place in range(9):
            top, left = 1 + 10 * (place // 3), 1 + 10 * (place % 3)
            light = picture[:, top : top + 10, left : left + 10].reshape(3, -1).max(1)
            if place not in named:
                assert light.max() == 0
            else:
                errors = {name: np.abs(light - colour).sum() for name, colour in COLOURS.items()}
                assert min(errors, key=errors.get) == named[place]


def test_relations_hold(data):
    seen = set()
    for scene in data.train.scenes(torch.arange(500)):
        if scene.relation:
            (row_1, column_1), (row_2, column_2) = (divmod(thing.place, 3) for thing in scene.things)
            holds = {
                "above": row_1 < row_2 and column_1 == column_2,
                "below": row_1 > row_2 and column_1 == column_2,
                "left of": column_1 < column_2 and row_1 == row_2,
                "right of": column_1 > column_2 and row_1 == row_2,
            }
            assert holds[scene.relation], scene.caption
            seen.add(scene.relation)
    assert seen == set(RELATIONS)


def test_held_out_combinations_are_never_trained_on(data):
    assert all(scene.is_seen for scene in data.train.scenes(torch.arange(5000)))
    held_out = [scene.is_seen for scene in data.held_out.scenes(INDEX)]
    assert held_out == [number % 2 == 0 for number in range(len(INDEX))]
    shown = {(thing.digit, thing.colour) for s in data.train.scenes(torch.arange(5000)) for thing in s.things}
    assert len(shown) == 10 * len(COLOURS) - len(COLOURS)


def test_a_scene_is_a_function_of_its_index(data):
    both = data.train.fetch(torch.tensor([7, 3]))
    assert torch.equal(both[0], data.train.fetch(torch.tensor([7]))[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both[0], data.held_out.fetch(torch.tensor([7]))[0])


def test_shape(data):
    assert data.shape == (3, 32, 32)
    assert (len(data.train), len(data.held_out)) == (20_000, 2_000)
    assert data.class_names == ()
