import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digit_scenes, digits
from rectiflow.data.config import DataConfig
from rectiflow.data.images import to_float
from rectiflow.data.sets import open_set, write_set


def test_digits_as_a_folder_come_back(tmp_path):
    """Same writers in each part, same classes, the levels within half a step of 256."""
    assert write_set("digits", tmp_path / "digits", 40) == {"train": 40, "test": 40}
    back, source = open_set(DataConfig(set="folder", dir=str(tmp_path / "digits"))), digits()
    assert back.shape == source.shape
    assert back.class_names == source.class_names
    for mine, theirs in ((back.train, source.train), (back.held_out, source.held_out)):
        order = [int(path.split("/")[-1].removesuffix(".png")) for path in mine.table["path"]]
        assert sorted(order) == list(range(40))
        assert mine.labels.tolist() == theirs.labels[order].tolist()
        expected = theirs.fetch(torch.tensor(order))
        assert torch.allclose(to_float(mine.fetch(torch.arange(40))), expected, atol=0.5 / 127.5 + 1e-6)


def test_scenes_as_a_folder_come_back_with_their_captions(tmp_path):
    write_set("digit-scenes", tmp_path / "scenes", 12)
    back, source = open_set(DataConfig(set="folder", dir=str(tmp_path / "scenes"))), digit_scenes()
    assert back.shape == (3, 32, 32)
    assert back.class_names == ()
    assert back.train.captions(torch.arange(12)) == source.train.captions(torch.arange(12))
    assert back.held_out.captions(torch.arange(12)) == source.held_out.captions(torch.arange(12))
    assert torch.equal(back.train.fetch(torch.arange(12)), source.train.fetch(torch.arange(12)))


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="choose another --out"):
        write_set("digits", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "count", "words"), [("digit", 0, "Did you mean 'digits'"), ("digits", -1, "at least 0")]
)
def test_what_cannot_be_written(tmp_path, name, count, words):
    with pytest.raises(InputError, match=words):
        write_set(name, tmp_path / "out", count)


def test_settings_of_folders_on_a_built_in_set():
    with pytest.raises(InputError, match="takes no folder"):
        open_set(DataConfig(set="digits", dir="pictures"))
    with pytest.raises(InputError, match="digits is 8×8"):
        open_set(DataConfig(set="digits", size=16))
    assert open_set(DataConfig(set="digits", size=8)).shape == (1, 8, 8)


def test_frames_of_built_in_sets():
    """A config of pictures (frames=1) gives the clips of their own length."""
    assert open_set(DataConfig(set="digit-clips")).shape == (3, 17, 32, 32)
    assert open_set(DataConfig(set="digit-clips", frames=9)).shape == (3, 9, 32, 32)
    with pytest.raises(InputError, match="received 33; the nearest is 17"):
        open_set(DataConfig(set="digit-clips", frames=33))
    with pytest.raises(InputError, match=r"data.frames is 5, but digits are pictures; leave it out\."):
        open_set(DataConfig(set="digits", frames=5))
    with pytest.raises(InputError, match=r"for your own: rectiflow train video\."):
        open_set(DataConfig(set="digit-clips", frames=5, dir="films"))
