"""A plan that is ended while it rehearses leaves neither processes nor folders."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
from rectiflow.plan.probe import in_a_child
from rectiflow.recipes.registry import resolve
in_a_child(resolve("digits", settings=["threads=1"]), False, 60.0)
"""


def wait_for(found, seconds: float = 60.0):
    """What `found` gives, as soon as it gives anything."""
    until = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return there


def children(number: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []


def runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -2), (signal.SIGKILL, -9)], ids=lambda each: str(each)
)
def test_nothing_is_left_of_a_plan_that_is_ended(number, status, tmp_path):
    plan = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        # Whoever starts the tests in a shell's background has SIGINT ignored, and so would the plan.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        (child,) = wait_for(lambda: children(plan.pid))
        (folder,) = wait_for(lambda: list(tmp_path.glob("rectiflow-plan-*")))
        time.sleep(0.5)
        assert runs(child)
        plan.send_signal(number)
        assert plan.wait(30) == status
    finally:
        plan.kill()
    wait_for(lambda: not runs(child))
    wait_for(lambda: not folder.exists())
    assert not list(tmp_path.glob("rectiflow-plan-*"))
