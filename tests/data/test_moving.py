"""The caption of a clip says exactly what its frames show."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digit_clips, digits
from rectiflow.data.images import InMemory
from rectiflow.data.moving import DIRECTIONS, SPEEDS, Movement, MovingDigits, parse_movement
from rectiflow.data.scenes import COLOURS

INDEX = torch.arange(400)


@pytest.fixture(scope="module")
def data():
    return digit_clips()


@pytest.fixture(scope="module")
def clips(data):
    return data.train.fetch(INDEX)


def test_shape(data, clips):
    assert data.shape == (3, 17, 32, 32)
    assert data.size == (32, 32)
    assert (len(data.train), len(data.held_out)) == (20_000, 2_000)
    assert clips.shape == (400, 3, 17, 32, 32)
    assert clips.dtype == torch.uint8


def test_each_frame_is_the_first_one_moved_by_its_whole_pixels(data, clips):
    """By rolling the whole frame: nothing is cut off at an edge, so nothing comes in at the other."""
    for clip, movement in zip(clips, data.train.movements(INDEX), strict=True):
        down, right = DIRECTIONS[movement.direction]
        for t, frame in enumerate(clip.unbind(1)):
            moved = int(SPEEDS[movement.speed] * t + 0.5)
            assert torch.equal(frame, clip[:, 0].roll((down * moved, right * moved), (1, 2)))
            lit = frame.amax(0).nonzero()
            assert (lit.amax(0) - lit.amin(0) < 8).all(), "wholly in the canvas, and in one piece"


def test_digit_and_colour_are_those_of_the_caption(data, clips):
    held = digits().train
    ink = (held.fetch(torch.arange(len(held)))[:, 0] + 1) / 2
    for clip, movement in zip(clips[:60], data.train.movements(INDEX[:60]), strict=True):
        frame = clip[:, 8].double()
        light = frame.flatten(1).amax(1)
        assert light.tolist() == list(COLOURS[movement.colour])
        shown = (frame / torch.tensor(COLOURS[movement.colour])[:, None, None]).mean(0)
        windows = shown.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 1, 64)
        mine = ink[held.labels == movement.digit].flatten(1)[None].double()
        assert (windows - mine).abs().amax(-1).min() < 0.02, "one of the writers' own"


def test_starts_and_lines_are_even_among_what_fits(data):
    """Slowly, a digit moves 8 of 24 pixels: 17 starts; the middle speed leaves 9, fast 1; 25 lines across always."""
    index = torch.arange(6000)
    found = {name: ([], []) for name in SPEEDS}
    boxes = MovingDigits(_block(), "train", 6000)
    for clip, movement in zip(boxes.fetch(index), boxes.movements(index), strict=True):
        corner = clip[:, 0].amax(0).nonzero()[0].tolist()
        if movement.direction in ("right", "left"):
            corner.reverse()
        travel = {"slowly": 8, "middle": 16, "fast": 24}[movement.speed]
        found[movement.speed][0].append(corner[0] - (travel if movement.direction in ("left", "up") else 0))
        found[movement.speed][1].append(corner[1])
    for name, starts in (("slowly", 17), ("middle", 9), ("fast", 1)):
        for values, many in zip(found[name], (starts, 25), strict=True):
            counts = np.bincount(values, minlength=many)
            assert len(counts) == many
            expected = len(values) / many
            assert ((counts - expected) ** 2 / expected).sum() < many + 5 * (2 * many) ** 0.5


def test_directions_speeds_and_combinations_are_even(data):
    movements = data.train.movements(torch.arange(20_000))
    for kinds in (
        [(m.direction, m.speed) for m in movements],
        [(m.digit, m.colour) for m in movements],
    ):
        counts = np.unique(kinds, axis=0, return_counts=True)[1]
        expected = 20_000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * (2 * len(counts)) ** 0.5
    assert len({m.caption for m in movements}) == 63 * 12


def test_held_out_combinations_are_never_trained_on(data):
    assert all(movement.is_seen for movement in data.train.movements(torch.arange(20_000)))
    assert [m.is_held_out for m in data.held_out.movements(INDEX)] == [i % 2 == 1 for i in range(len(INDEX))]
    assert len({m.colour for m in data.held_out.movements(INDEX[1::2])}) == len(COLOURS)


def test_a_clip_is_a_function_of_its_index(data, clips):
    assert torch.equal(data.train.fetch(torch.tensor([7, 3])), clips[[7, 3]])
    assert not torch.equal(clips[7], data.held_out.fetch(torch.tensor([7]))[0])


def test_shorter_clips_have_the_same_captions(data):
    short = digit_clips(9).train
    assert short.shape == (3, 9, 32, 32)
    assert short.fetch(INDEX[:2]).shape == (2, 3, 9, 32, 32)
    assert short.captions(INDEX) == data.train.captions(INDEX)


@pytest.mark.parametrize(("frames", "nearest"), [(1, 5), (4, 5), (10, 9), (16, 17), (21, 17), (65, 17)])
def test_other_numbers_of_frames_are_refused(frames, nearest):
    with pytest.raises(InputError, match=f"received {frames}; the nearest is {nearest}"):
        digit_clips(frames)


def test_every_caption_is_read_back():
    captions = set()
    for digit in range(10):
        for colour in COLOURS:
            for direction in DIRECTIONS:
                for speed in SPEEDS:
                    movement = Movement(digit, colour, direction, speed)
                    assert parse_movement(movement.caption) == movement
                    captions.add(movement.caption)
    assert len(captions) == 10 * 7 * 4 * 3
    assert Movement(5, "green", "left", "middle").caption == "a green 5 moving left"
    assert replace(Movement(5, "green", "left", "fast"), speed="slowly").caption == "a green 5 moving left slowly"


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a gren 5 moving left", "unknown colour 'gren'. Did you mean 'green'?"),
        ("a green 55 moving left", "unknown digit '55'."),
        ("a green 5 moving lef", "unknown direction 'lef'. Did you mean 'left'?"),
        ("a green 5 moving left slow", "unknown speed 'slow'. Did you mean 'slowly'?"),
        ("a green 5 moving left middle", "unknown speed 'middle'."),
        ("a green 5 moves left", "expected one like 'a green 5 moving left'"),
        ("a green 5 moving left and down", "not a sentence of the grammar"),
        ("A green 5 moving left", "not a sentence of the grammar"),
        ("a green 5 moving left ", "not a sentence of the grammar"),
        ("a green 5\u2028moving left", "not a sentence of the grammar"),
        ("", "not a sentence of the grammar"),
    ],
)
def test_other_sentences_are_refused(caption, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        parse_movement(caption)
    assert "\n" not in str(caught.value)


def _block():
    """A full square for each digit, whose corner is that of its window."""
    return InMemory(torch.ones(10, 1, 8, 8), torch.arange(10))
