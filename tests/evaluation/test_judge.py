"""The judge sees what is there, is told nothing else, and sees worse in worse pictures as an eye would."""

import pytest
import torch
import torch.nn.functional as F

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.images import to_float
from rectiflow.data.scenes import COLOURS, Scenes, Thing
from rectiflow.evaluation.judge import Judge, judge

COUNT = 200
INDEX = torch.arange(COUNT)


@pytest.fixture(scope="module")
def reads():
    return judge()


@pytest.fixture(scope="module")
def real():
    return Scenes(digits().train, "train", COUNT)


@pytest.fixture(scope="module")
def pixels(real):
    return to_float(real.fetch(INDEX))


def shares(readings, scenes):
    """Place, colour and digit, each of the objects asked for; and pictures with the number of objects asked for."""
    place, colour, digit, number = [], [], [], []
    for reading in readings:
        for things, scene in zip(reading, scenes, strict=True):
            there = {thing.place: thing for thing in things}
            number.append(len(things) == len(scene.things))
            for asked in scene.things:
                found = there.get(asked.place)
                place.append(found is not None)
                colour.append(found is not None and found.colour == asked.colour)
                digit.append(found is not None and found.digit == asked.digit)
    return [sum(values) / len(values) for values in (place, colour, digit, number)]


def half_a_pixel(x, dim):
    return (x + x.roll(1, dim)) / 2


def test_it_reads_the_training_writers_whom_it_has_not_seen(reads, real, pixels):
    place, colour, digit, number = shares(reads.read(pixels), real.scenes(INDEX))
    assert (place, colour, number) == (1, 1, 1)
    assert digit > 0.88


def test_it_reads_the_writer_that_a_reader_has_not_seen_worse_than_those_it_has(reads):
    unseen, seen = [], []
    for number, writer in enumerate(reads.writers):
        scenes = Scenes(writer, "held out", COUNT)
        readings = reads.read(to_float(scenes.fetch(INDEX)))
        digit = [shares([reading], scenes.scenes(INDEX))[2] for reading in readings]
        unseen.append(digit.pop(number))
        seen += digit
    assert min(seen) > 0.99, "digits that a reader learnt from"
    assert 0.8 < sum(unseen) / 3 < 0.97, "digits of another hand: a leak would bring these to 1"


def test_there_are_as_many_writers_as_were_held_out(reads):
    held_out = digits().held_out
    assert torch.equal(torch.cat([writer.pixels for writer in reads.writers]), held_out.pixels)
    assert torch.equal(torch.cat([writer.labels for writer in reads.writers]), held_out.labels)


def test_a_picture_is_read_by_itself(reads, pixels):
    together = reads.read(pixels[:20])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = reads.read(pixels[order])
    alone = reads.read(pixels[5:6])
    for reader in range(len(reads.writers)):
        assert [together[reader][i] for i in order.tolist()] == shuffled[reader]
        assert together[reader][5] == alone[reader][0]


def test_two_judges_read_alike(reads, pixels):
    assert judge().read(pixels) == reads.read(pixels)


def test_brightness_and_background_change_nothing(reads, pixels):
    """Half as bright, and on grey: a picture's own black and white are what counts."""
    expected = reads.read(pixels)
    assert reads.read((pixels + 1) / 2 - 1) == expected
    assert reads.read(0.9 * pixels + 0.1) == expected


@pytest.mark.parametrize(
    ("name", "least_digit", "least_colour"),
    [
        ("clipped", 0.85, 0.97),
        ("bright", 0.85, 0.97),
        ("noise", 0.8, 0.99),
        ("grey noise", 0.75, 0.99),
        ("half a pixel down", 0.85, 0.99),
        ("half a pixel right", 0.85, 0.99),
        ("dimmed by a curve", 0.85, 0.99),
    ],
)
def test_it_reads_what_a_person_still_reads(reads, real, pixels, name, least_digit, least_colour):
    draw = torch.Generator().manual_seed(0)
    worse = {
        "clipped": (2 * (pixels + 1) - 1).clamp(-1, 1),
        "bright": pixels + 0.3,
        "noise": pixels + 0.2 * torch.randn(pixels.shape, generator=draw),
        "grey noise": pixels + 0.2 * torch.randn((COUNT, 1, 32, 32), generator=draw),
        "half a pixel down": half_a_pixel(pixels, -2),
        "half a pixel right": half_a_pixel(pixels, -1),
        "dimmed by a curve": 2 * ((pixels + 1) / 2) ** 1.5 - 1,
    }
    place, colour, digit, number = shares(reads.read(worse[name]), real.scenes(INDEX))
    assert (place, number) == (1, 1)
    assert colour >= least_colour
    assert digit >= least_digit


def test_it_sees_less_the_worse_a_picture_is(reads, real, pixels):
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    digit = [shares(reads.read(pixels + level * noise), real.scenes(INDEX))[2] for level in (0, 0.2, 0.4, 0.8)]
    assert digit == sorted(digit, reverse=True)
    assert digit[-1] < 0.6
    blurred = shares(reads.read(F.avg_pool2d(F.pad(pixels, [1] * 4, value=-1), 3, 1)), real.scenes(INDEX))
    assert blurred[0] == blurred[1] == 1, "blurred, it still has a place and a colour"
    assert 0.5 < blurred[2] < digit[0]


def test_nothing_is_found_where_nothing_is(reads):
    draw = torch.Generator().manual_seed(0)
    empty = torch.full((4, 3, 32, 32), -1.0)
    empty[1] = 0.5
    empty[2] += 0.1 * torch.randn((3, 32, 32), generator=draw).abs()
    empty[3] = float("nan")
    assert reads.read(empty) == [[()] * 4] * 3
    assert reads.read(empty[:0]) == [[]] * 3


def test_a_faint_ghost_is_no_object(reads, real, pixels):
    """A tenth as bright as its neighbours."""
    ghosts = (pixels + 0.1 * (pixels.flip(0) + 1)).clamp(-1, 1)
    number = shares(reads.read(ghosts), real.scenes(INDEX))[3]
    assert number > 0.99


def test_every_colour_everywhere(reads):
    ink = (digits().train.pixels[0, 0] + 1) / 2  # a 0
    for colour, levels in COLOURS.items():
        for place in range(9):
            picture = torch.full((1, 3, 32, 32), -1.0)
            top, left = 2 + 10 * (place // 3), 2 + 10 * (place % 3)
            picture[0, :, top : top + 8, left : left + 8] = 2 * torch.tensor(levels)[:, None, None] / 255 * ink - 1
            assert reads.read(picture) == [[(Thing(0, colour, place),)]] * 3


def test_refusals(reads):
    with pytest.raises(InputError, match="N×3×32×32"):
        reads.read(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="two or more"):
        Judge(reads.writers[:1])
