"""Frames that a user gives of clips, out of files."""

import numpy as np
import pytest
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.given import read_end

SHAPE = (1, 9, 4, 4)


def _gif(path, lasts):
    """One grey level for each frame, which lasts so many milliseconds."""
    pictures = [Image.fromarray(np.full((4, 4), 20 * (number + 1), np.uint8)) for number in range(len(lasts))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lasts, disposal=2)
    return path


def _levels(clip):
    return [round((float(frame.mean()) + 1) * 127.5 / 20) - 1 for frame in clip[0, 0]]


@pytest.mark.parametrize("held", [0, 3, 7])
def test_a_film_is_gone_on_from_at_its_end_wherever_a_frame_was_held(tmp_path, held):
    lasts = [100] * 10
    lasts[held] = 2000
    ends = _levels(read_end(_gif(tmp_path / "x.gif", lasts), 5, SHAPE))
    assert ends == ([7, 7, 7, 8, 9] if held == 7 else [5, 6, 7, 8, 9])


def test_an_even_film_ends_with_its_last_frames(tmp_path):
    assert _levels(read_end(_gif(tmp_path / "x.gif", [100] * 10), 5, SHAPE)) == [5, 6, 7, 8, 9]


def test_a_film_shorter_than_what_is_asked_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 4 frames, expected 5 at least"):
        read_end(_gif(tmp_path / "x.gif", [100] * 4), 5, SHAPE)
