"""Runs that are asked to leave by a signal."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp

from rectiflow.__main__ import main
from rectiflow.pipeline import Pipeline
from rectiflow.training import watch
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.data.shard_files import write_tar
from tests.training.deaths import DIT, started, until

STEP = 0.2


def train_command(folder, *settings):
    """`rectiflow train` in a process whose steps take a while, and which notes what it does."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    os.setpgid(0, 0)
    watch._MEASURING = 0.0

    def note(owner, name):
        original = getattr(owner, name)

        def noted(self, *given):
            with (folder.parent / name).open("a") as file:
                file.write("x")
            time.sleep(STEP)
            return original(self, *given)

        setattr(owner, name, noted)

    for owner, name in ((Trainer, "_train"), (FlowStage, "held_out"), (Trainer, "_preview")):
        note(owner, name)
    if not settings:
        original = dcp.FileSystemWriter.write_data

        def write(self, *given):
            (folder.parent / "saving").touch()
            time.sleep(60)
            return original(self, *given)

        dcp.FileSystemWriter.write_data = write
    every = "every={log: 1, held_out: 1, preview: 1, first_preview: 0, save: 1000}"
    run = ("steps=1000", "batch=8", "precision=float32", "watch=[]", DIT, every, *settings)
    recipe = "folder" if any("shards" in setting for setting in settings) else "digits"
    sys.exit(main(["train", recipe, "--run", str(folder), "--set", *run]))


def size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_leave_it_ends_the_step_in_hand_and_saves(tmp_path, number, status):
    """Nothing else is begun: no step, no held-out check, no preview; all is over long before the run would be."""
    process = started(train_command, tmp_path / "run", "seed=0")
    until(lambda: size(tmp_path / "_train") > 3)
    begun, began = size(tmp_path / "_train"), time.perf_counter()
    os.kill(process.pid, number)
    process.join(60)
    seconds = time.perf_counter() - began
    steps, shown = size(tmp_path / "_train"), size(tmp_path / "_preview")
    assert process.exitcode == status
    assert steps - begun <= 1  # one may have begun before the signal was there
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).newest_good(pytest.fail) == steps
    assert steps - 1 <= shown <= size(tmp_path / "held_out") <= steps
    assert Pipeline.load(tmp_path / "run").training["step"] == steps
    assert seconds < 5 * 3 * STEP + 10


def test_a_launcher_may_ask_everyone_and_twice(tmp_path):
    """As Slurm and `torchrun` between them do: the processes that read data are asked too, and that is no fault."""
    where = write_tar(tmp_path / "set" / "0.tar", range(50))
    shards = ("data.set=shards", f'data.shards=["{where}"]', "data.size=8", "data.workers=1")
    process = started(train_command, tmp_path / "run", *shards)
    until(lambda: size(tmp_path / "_train") > 1)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    steps = size(tmp_path / "_train")
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).newest_good(pytest.fail) == steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(tmp_path, number):
    """Even in the middle of a save that takes a minute; the run's own record says that it was stopped."""
    process = started(train_command, tmp_path / "run")
    until(lambda: size(tmp_path / "_train") > 1)
    os.kill(process.pid, number)
    until((tmp_path / "saving").exists)
    time.sleep(1.2)
    assert process.is_alive()
    began = time.perf_counter()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == -number
    assert time.perf_counter() - began < 15
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    assert not Checkpoints(tmp_path / "run" / "checkpoints", 2).steps()
