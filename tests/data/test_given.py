"""Frames that a user gives of clips, out of files."""

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.given import read_end, read_film
from rectiflow.data.images import to_float

SHAPE = (1, 9, 4, 4)


def _gif(path, lasts):
    """One grey level for each frame, which lasts so many milliseconds."""
    pictures = [Image.fromarray(np.full((4, 4), 20 * (number + 1), np.uint8)) for number in range(len(lasts))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lasts, disposal=2)
    return path


def _levels(clip):
    return [round((float(frame.mean()) + 1) * 127.5 / 20) - 1 for frame in clip[0, 0]]


@pytest.mark.parametrize("held", [(), (0,), (3,), (7,), (9,), (3, 9), (7, 9)])
def test_a_film_is_gone_on_from_at_its_end_wherever_a_frame_was_held(tmp_path, held):
    """By its times, but for how long its last frame is shown; a server goes on from the same frames."""
    lasts = [2000 if number in held else 100 for number in range(10)]
    path = _gif(tmp_path / "x.gif", lasts)
    end, speed = read_end(path, 5, SHAPE)
    assert speed == pytest.approx(10)
    assert _levels(end) == ([7, 7, 7, 8, 9] if 7 in held else [5, 6, 7, 8, 9])
    frames, length, rate = read_film(path, 1, SHAPE[-2:], 100, 5)
    assert torch.equal(to_float(frames.permute(3, 0, 1, 2))[None], end)
    assert (length, rate) == (29 if held and held[0] < 9 else 10, pytest.approx(10))
    whole = read_film(path, 1, SHAPE[-2:], 100).frames
    assert (len(whole), torch.equal(whole[-5:], frames)) == (length, True)


def test_an_even_film_ends_with_its_last_frames(tmp_path):
    assert _levels(read_end(_gif(tmp_path / "x.gif", [100] * 10), 5, SHAPE)[0]) == [5, 6, 7, 8, 9]


def test_a_film_shorter_than_what_is_asked_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 4 frames, expected 5 at least"):
        read_end(_gif(tmp_path / "x.gif", [100] * 4), 5, SHAPE)
    with pytest.raises(InputError, match="one frame; expected a film"):
        read_end(_gif(tmp_path / "x.gif", [100]), 5, SHAPE)
