"""A checkpoint is whole whatever moment the process that saves it is killed at."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rectiflow.training.checkpoint import Checkpoints
from tests.conftest import same
from tests.training.checkpoints import loaded, names, path_of, state

CRASHES = """
import os, random, signal, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from rectiflow.training.checkpoint import Checkpoints
from tests.conftest import same
from tests.training.checkpoints import blank, names, state

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
    path_of(tmp_path, 1).rename(tmp_path / ".step-00000001.old")  # cut off between the two renames
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / "step-00000009.bad").mkdir()
    fresh = Checkpoints(tmp_path, 2)
    assert fresh.steps() == []  # asking changes nothing
    assert names(tmp_path) == [".step-00000001.old", "notes.tmp", "step-00000002.tmp", "step-00000009.bad"]
    assert fresh.newest_good(pytest.fail) == 1
    assert names(tmp_path) == ["notes.tmp", "step-00000001", "step-00000009.bad"]
