import errno
import hashlib

import pytest

from rectiflow.base.errors import InputError
from rectiflow.base.files import recover_folder, sha256, write_folder, write_text


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_failed_write_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_folder_keeps_the_former_one(tmp_path, failure):
    folder = tmp_path / "model"
    write_folder(folder, lambda aside: (aside / "a").write_text("old"))

    def fill(aside):
        (aside / "a").write_text("new")
        raise failure

    with pytest.raises(InputError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_folder(folder, fill)
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_crash_between_the_renames_is_recovered(tmp_path):
    folder = tmp_path / "model"
    write_folder(folder, lambda aside: (aside / "a").write_text("old"))
    folder.rename(tmp_path / ".model.old")
    recover_folder(folder)
    assert (folder / "a").read_text() == "old"


def test_copies_that_somebody_has_made_are_left_alone(tmp_path):
    folder = tmp_path / "model"
    for name in ("model.old", "model.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    for _ in range(2):
        write_folder(folder, lambda aside: (aside / "a").write_text("new"))
    assert {path.name for path in tmp_path.rglob("*")} == {"model", "a", "model.old", "model.tmp", "mine"}


def test_replacing_a_folder_leaves_nothing_of_the_former(tmp_path):
    folder = tmp_path / "model"
    write_folder(folder, lambda aside: (aside / "a").write_text("old"))
    write_folder(folder, lambda aside: (aside / "b").write_text("new"))
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
