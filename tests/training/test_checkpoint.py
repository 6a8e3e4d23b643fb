"""Checkpoints: what is saved, what is kept, and what is loaded from them."""

import hashlib
import json
import threading
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.manifest import Entry, Manifest, read_manifest
from tests.conftest import same
from tests.training.checkpoints import FILES, loaded, names, path_of, state


def test_what_is_loaded_is_what_was_saved(tmp_path, background):
    checkpoints = Checkpoints(tmp_path, 2, background=background)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert sorted(names(path_of(tmp_path, 3))) == sorted(FILES)
    for step in (2, 3):
        assert same(loaded(Checkpoints(tmp_path, 2), step), state(step))
    told = []
    assert Checkpoints(tmp_path, 2).newest_good(told.append) == 3
    assert told == []


def test_the_manifest_is_true(tmp_path):
    Checkpoints(tmp_path, 1).save(7, state(7), metric=0.1 + 0.2)
    manifest = read_manifest(path_of(tmp_path, 7))
    assert (manifest.step, manifest.world, manifest.metric, manifest.torch) == (7, 1, 0.1 + 0.2, torch.__version__)
    assert manifest.files == {name: Entry.of(path_of(tmp_path, 7) / name) for name in (".metadata", "__0_0.distcp")}


def test_only_what_was_saved_before_a_step_is_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, 9)
    for step in (2, 3):
        checkpoints.save(step, state(step), regular=step == 2)
    assert checkpoints.newest_good(pytest.fail, regular=True, before=4) == 2
    assert checkpoints.newest_good(pytest.fail, before=4) == 3
    assert checkpoints.newest_good(pytest.fail, regular=True, before=2) is None


def test_those_of_stops_leave_the_others_as_they_are(tmp_path):
    """As many to go back to are kept as of a run that was never stopped; of those of stops the newest alone."""
    checkpoints = Checkpoints(tmp_path, 2)
    left = []
    for step in (10, 11, 12, 20, 21, 22, 30):
        checkpoints.save(step, state(step), regular=step % 10 == 0)
        left.append(checkpoints.steps())
    assert left == [[10], [10, 11], [10, 12], [10, 20], [10, 20, 21], [10, 20, 22], [20, 30]]


def test_a_manifest_of_before_says_nothing_of_that_and_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, 9)
    checkpoints.save(4, state(4))
    file = path_of(tmp_path, 4) / "manifest.json"
    values = json.loads(file.read_text())
    assert "owed" not in values
    del values["regular"], values["sha256"]
    file.write_text(json.dumps({**values, "sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}, indent=1))
    assert checkpoints.newest_good(pytest.fail, regular=True) == 4
    assert not checkpoints.owed(4)


def test_nothing_there_is_nothing_good(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", 1)
    assert (checkpoints.steps(), checkpoints.best(), checkpoints.newest_good(pytest.fail)) == ([], None, None)
    with pytest.raises(InputError, match=r"step-00000003 cannot be read.*never finished"):
        loaded(checkpoints, 3)


def test_the_newest_and_the_best_are_kept(tmp_path, background):
    checkpoints = Checkpoints(tmp_path, 2, keep_best=2, background=background)
    metrics = {1: 0.5, 2: 0.2, 3: float("nan"), 4: 0.3, 5: None, 6: float("-inf"), 7: 0.4, 8: 0.3}
    kept = {}
    for step, metric in metrics.items():
        checkpoints.save(step, state(step), metric)
        checkpoints.wait()
        kept[step] = checkpoints.steps()
    assert kept == {
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        4: [2, 3, 4],
        5: [2, 4, 5],
        6: [2, 4, 5, 6],
        7: [2, 4, 6, 7],
        8: [2, 4, 7, 8],  # of two equal ones the older is the better
    }
    assert Checkpoints(tmp_path, 1).best() == 2
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept[8]]


def test_what_was_just_written_is_never_pruned(tmp_path):
    """A run that goes back to an old step has newer checkpoints beside it."""
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (8, 9, 3):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [3, 8, 9]


def test_the_same_step_again_replaces_it(tmp_path, background):
    checkpoints = Checkpoints(tmp_path, 2, background=background)
    checkpoints.save(1, state(1))
    checkpoints.save(1, state(11))
    checkpoints.wait()
    assert same(loaded(checkpoints, 1), state(11))
    assert names(tmp_path) == ["step-00000001"]


def test_training_goes_on_while_it_is_written(tmp_path, monkeypatch):
    """The state is copied before `save` returns; only one save is under way."""
    release, under_way = threading.Event(), []
    original = dcp.FileSystemWriter.write_data

    def slow(self, *args):
        under_way.append(self.path.name)
        assert release.wait(20)
        return original(self, *args)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", slow)
    checkpoints, trained = Checkpoints(tmp_path, 3, background=True), state(1)
    checkpoints.save(1, trained)
    trained["module"]["a.weight"].zero_()
    trained["groups"][0]["lr"] = 99
    assert checkpoints.steps() == []
    waiting = threading.Thread(target=checkpoints.save, args=(2, state(2)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert under_way == ["step-00000001.tmp"]
    release.set()
    waiting.join(20)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert same(loaded(checkpoints, 1), state(1))
    assert same(loaded(checkpoints, 2), state(2))


def test_a_manifest_can_be_read_again():
    files = {"b": Entry(size=1, sha256="x"), "a": Entry(size=2, sha256="y")}
    manifest = Manifest.now(3, float("nan"), True, False, files)
    assert manifest.metric is None
    assert list(manifest.files) == ["a", "b"]
    values = json.loads(manifest.text())
    assert len(values.pop("sha256")) == 64
    assert Manifest.model_validate(values) == manifest


def test_copying_costs_less_than_writing(tmp_path):
    """What training waits for in the background is the copy alone."""
    big = {f"w{i}": torch.zeros(512, 1024) for i in range(30)}
    checkpoints, at_once = Checkpoints(tmp_path / "a", 1, background=True), Checkpoints(tmp_path / "b", 1)
    times = {}
    for name, kind in (("copy", checkpoints), ("write", at_once)):
        for step in (1, 2, 3):
            began = time.perf_counter()
            kind.save(step, big)
            times.setdefault(name, []).append(time.perf_counter() - began)
            kind.wait()
    assert min(times["copy"]) < 0.7 * min(times["write"])


def test_what_is_kept_for_its_metric_is_what_an_unstopped_run_has(tmp_path):
    """A stop saves with the metric that still stands, and would take the place of the one that was measured."""
    checkpoints = Checkpoints(tmp_path, 1, keep_best=1)
    for step, metric, regular, owed in (
        (1, 0.5, True, False),
        (2, 0.1, True, False),
        (3, 0.05, False, False),
        (4, 0.05, True, True),
        (5, 0.1, True, False),
        (6, 0.7, True, False),
    ):
        checkpoints.save(step, state(step), metric, regular, owed)
        assert checkpoints.best() == (1 if step == 1 else 2)
    assert checkpoints.steps() == [2, 6]
