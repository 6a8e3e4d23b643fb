"""Pictures that are read once and then kept."""

import pytest
import torch

from rectiflow.data.images import InMemory
from rectiflow.data.remembered import Remembered
from rectiflow.evaluation.features import SmallEncoder
from tests.data.read_count import Read

INDEX = torch.tensor([3, 7, 3, 0, 7, 19])


@pytest.mark.parametrize(("room", "kept"), [(10**6, 4), (2 * 64, 2), (63, 0), (0, 0)])
def test_pictures_are_those_that_were_asked_for_and_read_once_while_there_is_room(room, kept):
    images = Read()
    remembered = Remembered(images, room)
    for index in (INDEX, INDEX.flip(0), INDEX[:0]):
        if len(index):
            assert torch.equal(remembered.fetch(index), images.pixels[index])
    assert (images.reads == 1).sum() == kept
    assert (images.reads == 2).sum() == 4 - kept
    assert images.reads.sum() == kept + 2 * (4 - kept)


def test_crops_are_read_every_time():
    images = Read()
    remembered = Remembered(images)
    remembered.fetch(INDEX)
    assert torch.equal(remembered.fetch(INDEX, torch.zeros(6, 3)), 255 - images.pixels[INDEX])
    assert torch.equal(remembered.fetch(INDEX), images.pixels[INDEX])


def test_it_is_the_set_that_it_reads():
    images = Read()
    remembered = Remembered(images)
    assert (len(remembered), remembered.shape) == (20, images.shape)
    assert remembered.captions(INDEX)[1] == "picture 7"
    assert not remembered.costly


def test_an_encoder_reads_each_picture_once_and_learns_the_same():
    images = Read()
    encoder = SmallEncoder(images, steps=5)
    assert images.reads.tolist() == [1] * 20
    assert sorted(set(SmallEncoder.rows(20, 5, 0).tolist())) == list(range(20))
    held = SmallEncoder(InMemory(images.pixels, images.labels), steps=5)
    pixels = torch.rand(3, 1, 8, 8)
    assert torch.equal(encoder(pixels), held(pixels))
