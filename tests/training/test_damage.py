"""Damaged checkpoints: every fault is put into every kind of file, and nothing of it is lost."""

import errno
import json
import os
import random
import re
import shutil

import pytest
import torch
from rich.console import Console

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.run import train
from tests.conftest import same
from tests.training.checkpoints import FILES, blank, flip, loaded, names, path_of, raising, state


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path):
    path.unlink()


DAMAGE = {
    ("__0_0.distcp", truncate): r"__0_0.distcp has \d+ bytes of the \d+ written",
    ("__0_0.distcp", empty): r"__0_0.distcp has 0 bytes of the \d+ written",
    ("__0_0.distcp", lengthen): r"__0_0.distcp has \d+ bytes of the \d+ written",
    ("__0_0.distcp", flip): "__0_0.distcp is altered: its SHA-256 is not the one written",
    ("__0_0.distcp", remove): "__0_0.distcp is missing",
    (".metadata", truncate): r"\.metadata has \d+ bytes of the \d+ written",
    (".metadata", empty): r"\.metadata has 0 bytes of the \d+ written",
    (".metadata", lengthen): r"\.metadata has \d+ bytes of the \d+ written",
    (".metadata", flip): r"\.metadata is altered: its SHA-256 is not the one written",
    (".metadata", remove): r"\.metadata is missing",
    ("manifest.json", truncate): "its manifest.json is torn or altered",
    ("manifest.json", empty): "its manifest.json is torn or altered",
    ("manifest.json", lengthen): "its manifest.json is torn or altered",
    ("manifest.json", flip): "its manifest.json is torn or altered",
    ("manifest.json", remove): "it has no manifest.json, so it was never finished",
}


@pytest.mark.parametrize(("name", "harm"), DAMAGE, ids=[f"{name}-{harm.__name__}" for name, harm in DAMAGE])
def test_damage_is_named_and_passed_over_and_kept(tmp_path, name, harm):
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    harm(path_of(tmp_path, 2) / name)
    harmed = {path.name: path.read_bytes() for path in path_of(tmp_path, 2).iterdir()}
    with pytest.raises(InputError, match=rf"step-00000002 cannot be read; remove it .*{DAMAGE[name, harm]}") as caught:
        loaded(Checkpoints(tmp_path, 3), 2)
    assert "\n" not in str(caught.value)

    told = []
    fresh = Checkpoints(tmp_path, 3)
    assert fresh.newest_good(told.append) == 1
    assert len(told) == 1
    assert f"{path_of(tmp_path, 2)} is passed over: " in told[0]
    assert told[0].endswith("; it is kept as step-00000002.bad.")
    assert re.search(DAMAGE[name, harm], told[0])
    assert names(tmp_path) == ["step-00000001", "step-00000002.bad"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-00000002.bad").iterdir()} == harmed
    assert same(loaded(fresh, 1), state(1))

    assert fresh.newest_good(told.append) == 1  # it is not met again, and its place is free
    assert len(told) == 1
    fresh.save(2, state(2))
    assert fresh.newest_good(told.append) == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000002.bad"]


def test_no_bit_of_a_checkpoint_changes_unseen(tmp_path):
    """Single bits all over each file; nothing is unpickled before it is vouched for."""
    Checkpoints(tmp_path, 1).save(1, state(1), metric=0.5)
    draw = random.Random(0)
    for name in FILES:
        path = path_of(tmp_path, 1) / name
        content = path.read_bytes()
        for _ in range(40):
            flip(path, draw.random(), draw.randrange(8))
            with pytest.raises(InputError, match="step-00000001 cannot be read"):
                loaded(Checkpoints(tmp_path, 1), 1)
            path.write_bytes(content)
    assert same(loaded(Checkpoints(tmp_path, 1), 1), state(1))


def test_another_format_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    path = path_of(tmp_path, 2) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "a_new_field": []}))
    told = []
    assert checkpoints.newest_good(told.append) == 1
    assert "it is of format 2, and this version of rectiflow reads format 1" in told[0]


def test_a_checkpoint_of_another_step_is_not_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state(1))
    shutil.copytree(path_of(tmp_path, 1), path_of(tmp_path, 5))
    told = []
    assert Checkpoints(tmp_path, 2).newest_good(told.append) == 1
    assert "its manifest.json is of step 1" in told[0]


def test_where_none_can_be_used_nothing_is_touched(tmp_path):
    """A run that began anew would write over the model and the metrics that are left."""
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save(step, state(step))
        with (path_of(tmp_path, step) / "__0_0.distcp").open("ab") as file:
            file.write(b"x")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"no checkpoint in .* can be used .*step-00000002: .*step-00000001: .*anew"):
        Checkpoints(tmp_path, 2).newest_good(pytest.fail)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    for step in (1, 2):
        path_of(tmp_path, step).rename(tmp_path / f"step-0000000{step}.bad")
    with pytest.raises(InputError, match=r"step-00000001\.bad was put aside before; step-00000002\.bad was"):
        Checkpoints(tmp_path, 2).newest_good(pytest.fail)


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    with monkeypatch.context() as patch:

        def failing(path):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("rectiflow.training.manifest.sha256", failing)
        with pytest.raises(InputError, match=r"step-00000002: .*Input/output error.*try again"):
            Checkpoints(tmp_path, 2).newest_good(pytest.fail)
    assert Checkpoints(tmp_path, 2).newest_good(pytest.fail) == 2


def test_two_bad_ones_of_one_step_are_both_kept(tmp_path):
    Checkpoints(tmp_path, 1).save(1, state(1))
    for content in (b"first", b"second"):
        path_of(tmp_path, 4).mkdir(parents=True)
        (path_of(tmp_path, 4) / "x").write_bytes(content)
        assert Checkpoints(tmp_path, 1).newest_good(lambda line: None) == 1
    assert [(tmp_path / f"step-00000004.{end}" / "x").read_bytes() for end in ("bad", "bad2")] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["module"].update({"a.weight": torch.zeros(4, 1)}),
            "a.weight is float32 40×40 there and float32 4×1",
        ),
        (lambda s: s["module"].update(b=torch.zeros(3)), "module.b is bfloat16 3 there and float32 3 here"),
        (lambda s: s["module"].update(b=4), "module.b is bfloat16 3 there and no tensor here"),
        (lambda s: s["module"].update(c=torch.zeros(2)), "it has no module.c, which is expected here"),
        (lambda s: s["module"].pop("b"), "it has module.b, which is unknown here"),
        (lambda s: s.pop("step"), "it has step, which is unknown here"),
    ],
)
def test_another_network_is_told_by_its_first_difference(tmp_path, change, message):
    Checkpoints(tmp_path, 1).save(1, state(1))
    other = blank()
    change(other)
    with pytest.raises(InputError, match=rf"step-00000001 does not fit: .*{message}") as caught:
        Checkpoints(tmp_path, 1).load(1, other)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_looked_into_is_not_an_empty_one(small, tmp_path, monkeypatch):
    """Else a run would begin anew, over what it has learned."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", small.keep)
    train(small, tmp_path / "run", Console(quiet=True))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for error in (errno.EACCES, errno.ESTALE, errno.EIO):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", raising(error))
            with pytest.raises(InputError, match=rf"checkpoints cannot be read: {os.strerror(error)}"):
                checkpoints.steps()
            with pytest.raises(InputError, match="checkpoints cannot be read"):
                train(small, tmp_path / "run", Console(quiet=True))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert Checkpoints(tmp_path / "nowhere", 1).steps() == []


def test_what_cannot_be_read_is_never_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_best=1)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), metric=float(step))
    assert checkpoints.steps() == [1, 3]
    truncate(path_of(tmp_path, 1) / "manifest.json")
    checkpoints.save(4, state(4), metric=4.0)
    assert checkpoints.steps() == [1, 3, 4]  # the best of those that say so is 3
