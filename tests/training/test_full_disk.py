"""Checkpoints that cannot be written leave the last good one, and training can go on."""

import contextlib
import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from rectiflow.base.errors import InputError
from rectiflow.training import checkpoint as module
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.manifest import Entry
from tests.conftest import same
from tests.training.checkpoints import finish, flip, loaded, names, path_of, raising, state


@contextlib.contextmanager
def small_files(limit=4000):
    """No file may grow beyond `limit` bytes, as on a full disk; the operating system's own doing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {
    "data": lambda patch: patch.setattr(dcp.FileSystemWriter, "write_data", raising(errno.ENOSPC)),
    "metadata": lambda patch: patch.setattr(dcp.FileSystemWriter, "finish", raising(errno.ENOSPC)),
    "manifest": lambda patch: patch.setattr(module, "write_text", raising(errno.ENOSPC)),
    "hash": lambda patch: patch.setattr(Entry, "of", raising(errno.EIO)),
    "rename": lambda patch: patch.setattr(module, "put_folder", raising(errno.EROFS)),
    "flush": lambda patch: patch.setattr(os, "fsync", raising(errno.ENOSPC)),
}


@pytest.mark.parametrize("where", [*FULL, "real"])
def test_a_full_disk_leaves_the_last_good_one_and_training_can_go_on(tmp_path, monkeypatch, background, where):
    checkpoints = Checkpoints(tmp_path, 2, background=background)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    with monkeypatch.context() as patch, small_files() if where == "real" else contextlib.nullcontext():
        if where != "real":
            FULL[where](patch)
        with pytest.raises(
            InputError, match=r"could not write .*step-00000002: .*What was saved before is kept"
        ) as caught:
            finish(checkpoints, 2)
    reason = {"hash": errno.EIO, "rename": errno.EROFS, "real": errno.EFBIG}.get(where, errno.ENOSPC)
    assert os.strerror(reason) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-00000001"]
    checkpoints.wait()  # it is told once
    assert Checkpoints(tmp_path, 2).newest_good(pytest.fail) == 1
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert same(loaded(checkpoints, 3), state(3))
    assert checkpoints.steps() == [1, 3]


def test_a_failure_in_the_background_is_told_at_the_next_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2, background=True)
    with monkeypatch.context() as patch:
        FULL["data"](patch)
        checkpoints.save(1, state(1))
        with pytest.raises(InputError, match="step-00000001: No space left"):
            checkpoints.save(2, state(2))
    checkpoints.save(2, state(2))
    checkpoints.wait()
    assert checkpoints.steps() == [2]


def test_a_failure_in_the_background_is_told_when_going_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2, background=True)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    FULL["data"](monkeypatch)
    checkpoints.save(2, state(2))
    told = []
    assert checkpoints.newest_good(told.append) == 1
    assert len(told) == 1
    assert "step-00000002: No space left" in told[0]


def test_a_folder_that_cannot_be_written_to(background):
    """As another user if this one may write everywhere."""
    above = Path(tempfile.mkdtemp())
    folder = above / "checkpoints"
    Checkpoints(folder, 2).save(1, state(1))
    Checkpoints(folder, 2).save(2, state(2))
    flip(path_of(folder, 2) / "__0_0.distcp")
    for path in (above, folder):
        path.chmod(0o555)
    root, checkpoints, told = os.geteuid() == 0, Checkpoints(folder, 2, background=background), []
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"could not write .*step-00000003: Permission denied.*kept"):
            finish(checkpoints, 3)
        assert checkpoints.newest_good(told.append) == 1
        assert same(loaded(checkpoints, 1), state(1))
    finally:
        if root:
            os.seteuid(0)
        for path in (above, folder):
            path.chmod(0o755)
    assert told == [
        f"{path_of(folder, 2)} is passed over: __0_0.distcp is altered: its SHA-256 is not the one written; "
        "it is left where it is."
    ]
    assert names(folder) == ["step-00000001", "step-00000002"]
    shutil.rmtree(above)
