"""Checkpoints of which nothing is lost: every fault is put into every kind of file, every moment has its crash."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rectiflow.base.errors import InputError
from rectiflow.training import checkpoint as module
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.manifest import Entry, Manifest, read_manifest
from tests.conftest import same

FILES = ["__0_0.distcp", ".metadata", "manifest.json"]


def state(step, size=40):
    """A state as a run has one: tensors of several types, numbers, lists; another one for each step."""
    draw = torch.Generator().manual_seed(step)
    return {
        "module": {"a.weight": torch.randn(size, size, generator=draw), "b": torch.randn(3, generator=draw).bfloat16()},
        "optimiser": {
            "state": {"a.weight": {"exp_avg": torch.randn(size, size, generator=draw), "step": torch.tensor(1.0)}}
        },
        "groups": [{"lr": 0.1 * step, "betas": (0.9, 0.99)}],
        "step": step,
    }


def blank(size=40):
    """The same with nothing in it."""
    empty = state(0, size)
    empty["module"] = {name: torch.zeros_like(value) for name, value in empty["module"].items()}
    empty["optimiser"]["state"]["a.weight"]["exp_avg"].zero_()
    return empty


def loaded(checkpoints, step, size=40):
    into = blank(size)
    checkpoints.load(step, into)
    return into


def finish(checkpoints, step):
    checkpoints.save(step, state(step))
    checkpoints.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def path_of(folder, step):
    return folder / f"step-{step:08d}"


@pytest.fixture(params=[False, True], ids=["at once", "background"])
def background(request):
    return request.param


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


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path, at=0.5, bit=3):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


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


def test_only_what_was_saved_before_a_step_is_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, 9, every=2)
    for step in (2, 3, 4):
        checkpoints.save(step, state(step))
    assert checkpoints.newest_good(pytest.fail, regular=True, before=4) == 2
    assert checkpoints.newest_good(pytest.fail, before=4) == 3
    assert checkpoints.newest_good(pytest.fail, regular=True, before=2) is None


def test_what_was_regular_when_it_was_saved_stays_so(tmp_path):
    """The steps between saves may change when a run is gone on with; there must be something to go back to still."""
    checkpoints = Checkpoints(tmp_path, 1, every=5)
    for step in (10, 11):
        checkpoints.save(step, state(step))
    later = Checkpoints(tmp_path, 1, every=3)
    assert later.newest_good(pytest.fail, regular=True) == 10
    later.save(13, state(13))
    assert later.steps() == [10, 13]
    later.save(15, state(15))
    assert later.steps() == [15]


def test_a_manifest_of_before_says_nothing_of_that_and_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, 9, every=2)
    checkpoints.save(4, state(4))
    file = path_of(tmp_path, 4) / "manifest.json"
    values = json.loads(file.read_text())
    del values["regular"], values["sha256"]
    file.write_text(json.dumps({**values, "sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}, indent=1))
    assert checkpoints.newest_good(pytest.fail, regular=True) == 4
    assert Checkpoints(tmp_path, 9, every=3).newest_good(pytest.fail, regular=True) is None


def test_two_bad_ones_of_one_step_are_both_kept(tmp_path):
    Checkpoints(tmp_path, 1).save(1, state(1))
    for content in (b"first", b"second"):
        path_of(tmp_path, 4).mkdir(parents=True)
        (path_of(tmp_path, 4) / "x").write_bytes(content)
        assert Checkpoints(tmp_path, 1).newest_good(lambda line: None) == 1
    assert [(tmp_path / f"step-00000004.{end}" / "x").read_bytes() for end in ("bad", "bad2")] == [b"first", b"second"]


def test_nothing_there_is_nothing_good(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", 1)
    assert (checkpoints.steps(), checkpoints.best(), checkpoints.newest_good(pytest.fail)) == ([], None, None)
    with pytest.raises(InputError, match=r"step-00000003 cannot be read.*never finished"):
        loaded(checkpoints, 3)


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
        8: [2, 7, 8],  # of two equal ones the newer is the better
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


@contextlib.contextmanager
def small_files(limit=4000):
    """No file may grow beyond `limit` bytes, as on a full disk; the operating system's own doing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def raising(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


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


CRASHES = """
import os, random, signal, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from rectiflow.training.checkpoint import Checkpoints
from tests.conftest import same
from tests.training.test_checkpoint import blank, names, state

top = Path(sys.argv[1])

def dies(act):
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return child

def check(folder, expected, size, note):
    told, fresh = [], Checkpoints(folder, 1)
    step = fresh.newest_good(told.append)
    assert told == [] and step in expected, (note, told, step, names(folder))
    into = blank(size)
    fresh.load(step, into)
    version = next((version for version in expected[step] if same(into, state(version, size))), None)
    assert version is not None, (note, step)
    assert names(folder) == [f"step-{number:08d}" for number in fresh.steps()], (note, names(folder))
    fresh.save(1000, state(1000, size))
    assert names(folder) == ["step-00001000"], (note, names(folder))
    return step, version

def writes(event, arguments):
    if event == "open":
        return isinstance(arguments[1], str) and "w" in arguments[1]
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

seen = []
for background, again in ((False, False), (False, True), (True, False)):  # the former is removed, or the same replaced
    moment, ended = 0, False
    while not ended:
        moment += 1
        folder = top / f"{background}-{again}-{moment}"
        Checkpoints(folder, 1).save(5, state(5, 8))

        def act():
            left = moment

            def hook(event, arguments):
                nonlocal left
                if writes(event, arguments):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            checkpoints = Checkpoints(folder, 1, background=background)
            checkpoints.save(5 if again else 6, state(6, 8))
            checkpoints.wait()

        _, status = os.waitpid(dies(act), 0)
        ended = not os.WIFSIGNALED(status)
        expected = {5: [5, 6]} if again else {5: [5], 6: [6]}
        seen.append(check(folder, expected, 8, (background, again, moment))[1])

draw, steps = random.Random(0), []
for trial in range(6):
    folder = top / str(trial)

    def act():
        checkpoints = Checkpoints(folder, 2, background=bool(trial % 2))
        for step in range(1, 500):
            checkpoints.save(step, state(step, 300))

    child = dies(act)
    began = time.perf_counter()
    while max(Checkpoints(folder, 2).steps(), default=0) <= 2 * trial:
        time.sleep(0.002)
    time.sleep(draw.random() * (time.perf_counter() - began) / (2 * trial + 1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    steps.append(check(folder, {step: [step] for step in range(1, 500)}, 300, trial)[0])

print(seen.count(5), seen.count(6), len(steps), len(set(steps)))
Checkpoints(top / "last", 1, background=True).save(3, state(3, 1000))
"""


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """The folder of a process that killed children of its own, and what it counted."""
    folder, root = tmp_path_factory.mktemp("crashes"), Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, "-c", CRASHES, str(folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, [int(word) for word in done.stdout.split()]


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new(crashes):
    """SIGKILL before each file that a save opens, renames or removes: at once, of the same step, in the background."""
    old, new, *_ = crashes[1]
    assert old > 15
    assert new > 12


def test_a_kill_at_random_times_leaves_a_whole_checkpoint(crashes):
    *_, trials, different = crashes[1]
    assert trials == 6
    assert different > 1  # they were killed at different steps


def test_what_is_in_flight_is_not_lost_at_the_end_of_the_process(crashes):
    """Its last line began a save in the background, for which nobody waited."""
    assert same(loaded(Checkpoints(crashes[0] / "last", 1), 3, 1000), state(3, 1000))


def test_leftovers_of_a_crash_go_at_the_next_start_and_nothing_else(tmp_path):
    Checkpoints(tmp_path, 2).save(1, state(1))
    shutil.copytree(path_of(tmp_path, 1), tmp_path / "step-00000002.tmp")
    path_of(tmp_path, 1).rename(tmp_path / "step-00000001.old")  # cut off between the two renames
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / "step-00000009.bad").mkdir()
    fresh = Checkpoints(tmp_path, 2)
    assert fresh.steps() == []  # asking changes nothing
    assert names(tmp_path) == ["notes.tmp", "step-00000001.old", "step-00000002.tmp", "step-00000009.bad"]
    assert fresh.newest_good(pytest.fail) == 1
    assert names(tmp_path) == ["notes.tmp", "step-00000001", "step-00000009.bad"]


class Net(nn.Module):
    """Two layers whose sizes two processes don't divide."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 7), nn.Linear(7, 3)


def whole(value):
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    return value.full_tensor() if isinstance(value, DTensor) else value


def draw(network, seed):
    with torch.no_grad():
        for name, p in network.named_parameters():
            value = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + len(name)))
            (p._local_tensor if isinstance(p, DTensor) else p).copy_(
                dist.tensor.distribute_tensor(value, p.device_mesh, p.placements)._local_tensor
                if isinstance(p, DTensor)
                else value
            )


def rank_of_two(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    folder, told = Path(folder), []
    try:
        network = fully_shard(Net())
        draw(network, 0)
        plain = Checkpoints(folder / "plain", 2)
        plain.save(1, state(1), metric=0.5)
        assert plain.steps() == [1]  # in every process, at once
        shards = Checkpoints(folder / "shards", 1, background=True)
        shards.save(1, {"net": network.state_dict(), "step": 1})
        before = whole(network.state_dict())
        draw(network, 5)  # while it is written
        dist.barrier()  # words of training, in between
        shards.save(2, {"net": network.state_dict(), "step": 2})
        shards.wait()
        assert shards.steps() == [2]
        after = whole(network.state_dict())
        assert not same(before, after)
        draw(network, 9)
        into = {"net": network.state_dict(), "step": 0}
        Checkpoints(folder / "shards", 1).load(2, into)
        assert same(whole(into), {"net": after, "step": 2})

        # what one process wrote is read by two
        assert Checkpoints(folder / "one", 1).newest_good(told.append) == 4
        assert same(loaded(Checkpoints(folder / "one", 1), 4), state(4))
        into = {"net": network.state_dict(), "step": 0}
        Checkpoints(folder / "one-net", 1).load(5, into)
        expected = Net()
        draw(expected, 3)
        assert same(whole(into), {"net": expected.state_dict(), "step": 5})

        # a fault in one process is told in both, and leaves the last good one
        for background in (False, True):
            write = dcp.FileSystemWriter.write_data
            if rank == 1:
                dcp.FileSystemWriter.write_data = raising(errno.ENOSPC)
            faulty = Checkpoints(folder / "plain", 2, background=background)
            with pytest.raises(InputError, match="step-00000002: No space left on device"):
                finish(faulty, 2)
            dcp.FileSystemWriter.write_data = write
            dist.barrier()
            assert names(folder / "plain") == ["step-00000001"]

        # damage that one of them reads is known to both; only the first one tells
        plain.save(2, state(2))
        dist.barrier()
        if rank == 0:
            flip(folder / "plain" / "step-00000002" / "__1_0.distcp")
        dist.barrier()
        with pytest.raises(InputError, match=r"__1_0\.distcp is altered"):
            loaded(Checkpoints(folder / "plain", 2), 2)
        assert Checkpoints(folder / "plain", 2).newest_good(told.append) == 1
        assert ["__1_0.distcp is altered" in line for line in told] == ([True] if rank == 0 else [])
        torch.save(after, folder / f"after{rank}.pt")

        # one is killed in the middle of a save: the other is told, and the last good one stays
        lonely = Checkpoints(folder / "plain", 2, background=True)
        if rank == 1:
            dcp.FileSystemWriter.write_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(InputError, match="a process of this job is gone"):
            finish(lonely, 3)
        assert names(folder / "plain") == ["step-00000001", "step-00000002.bad"]
        (folder / "told").touch()
    finally:
        dist.destroy_process_group()


def test_two_processes_write_what_one_reads_and_the_reverse(tmp_path):
    Checkpoints(tmp_path / "one", 1).save(4, state(4))
    network = Net()
    draw(network, 3)
    Checkpoints(tmp_path / "one-net", 1).save(5, {"net": network.state_dict(), "step": 5})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    both = [context.Process(target=rank_of_two, args=(rank, str(tmp_path), port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in both] == [0, -signal.SIGKILL]
    assert (tmp_path / "told").exists()

    manifest = read_manifest(tmp_path / "plain" / "step-00000001")
    assert (manifest.world, manifest.metric) == (2, 0.5)
    assert set(manifest.files) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert same(loaded(Checkpoints(tmp_path / "plain", 1), 1), state(1))
    into = {"net": Net().state_dict(), "step": 0}
    Checkpoints(tmp_path / "shards", 1).load(2, into)
    assert same(into, {"net": torch.load(tmp_path / "after0.pt"), "step": 2})


def test_a_manifest_can_be_read_again():
    manifest = Manifest.now(3, 2, float("nan"), {"b": Entry(size=1, sha256="x"), "a": Entry(size=2, sha256="y")})
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
