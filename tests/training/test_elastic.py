"""Jobs of two processes: a process that is killed brings the job back by itself, and two jobs never share a folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rectiflow.__main__ import main
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.run_folder import alone_in
from tests.conftest import same
from tests.training.deaths import DIT, started, until

STEPS = 100
SETTINGS = (
    DIT,
    f"steps={STEPS}",
    "batch=8",
    "precision=float32",
    "watch=[]",
    "threads=1",
    "every={log: 10, held_out: 50, preview: 0, first_preview: 0, save: 10}",
)


def arguments(folder):
    return ["train", "digits", "--run", str(folder), "--set", *SETTINGS]


def member(rank, port, folder):
    """One process of a job of two, whose words go into a file of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.stderr = (folder.parent / f"errors{rank}").open("w")
    sys.exit(main(arguments(folder)))


def job(folder):
    """The exit statuses of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [started(member, rank, port, folder) for rank in range(2)]
    for process in both:
        process.join(120)
    return [process.exitcode for process in both]


def process_of(rank, folder):
    """The process of that rank that trains in `folder`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if str(folder).encode() in words and f"RANK={rank}".encode() in variables:
            return int(path.name)
    return None


def newest(folder):
    return max(Checkpoints(folder / "checkpoints", 2).steps(), default=0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc")
def test_killed_processes_bring_the_job_back_and_it_ends_as_if_never_stopped(tmp_path):
    """First the one, then the other, which writes the checkpoints, by `torchrun --max-restarts=2`."""
    (tmp_path / "a").mkdir()
    assert job(tmp_path / "a" / "run") == [0, 0]
    run, said = tmp_path / "b" / "run", tmp_path / "said"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    with said.open("w") as out:
        torchrun = subprocess.Popen([*launcher, "-m", "--", "rectiflow", *arguments(run)], stdout=out, stderr=out)
    try:
        killed = []
        for rank in (1, 0):
            before = newest(run)
            until(lambda before=before: newest(run) > before, 120)
            killed.append(process_of(rank, run))
            os.kill(killed[-1], signal.SIGKILL)
            assert newest(run) < STEPS
        assert torchrun.wait(180) == 0, said.read_text()
    finally:
        torchrun.kill()
    states = []
    for name in ("a", "b"):
        saved = Checkpoints(tmp_path / name / "run" / "checkpoints", 2)
        assert saved.newest_good(pytest.fail) == STEPS
        dcp_to_torch_save(saved.shelf.path(STEPS), tmp_path / "state.pt")
        states.append(torch.load(tmp_path / "state.pt", weights_only=False))
    assert same(*states)
    weights = [(tmp_path / name / "run" / "model" / "flow.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    words = said.read_text()
    assert "Traceback" not in words
    assert words.count("\nrectiflow: another process of this job has ended") == 2
    assert [words.count(f"step {step} of {STEPS}") for step in (0, STEPS)] == [1, 0]
    assert killed[0] != killed[1]


def test_two_jobs_on_one_folder_end_with_one_line(tmp_path):
    """The one that comes second, whatever the number of its processes."""
    run = tmp_path / "run"
    with alone_in(run):
        began = time.perf_counter()
        assert job(run) == [2, 2]
        assert time.perf_counter() - began < 60
        words = [(tmp_path / f"errors{rank}").read_text() for rank in range(2)]
    assert "".join(words).count("\n") == 1
    assert f"rectiflow: another process is training in {run}; wait for it" in "".join(words)
    assert not run.exists()
