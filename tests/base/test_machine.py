"""Memory: what a container allows, what a process took."""

import subprocess
import sys

from rectiflow.base import machine


def test_what_a_container_allows_is_the_least_of_its_groups(tmp_path):
    """Control groups of version 2: a limit above, none below."""
    own = tmp_path / "cgroup"
    own.write_text("0::/above/below\n")
    for name, limit, current in (("above", "1000", "400"), ("above/below", "max", "100")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(limit)
        (tmp_path / name / "memory.current").write_text(current)
    assert min(machine._allowances(own, tmp_path)) == 600
    (tmp_path / "above" / "below" / "memory.max").write_text("150")
    assert min(machine._allowances(own, tmp_path)) == 50


def test_pages_of_files_that_a_group_holds_are_free(tmp_path):
    """A container that has read its data for long is at its limit, and nothing is short."""
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "990"),
        ("memory.stat", "anon 300\ninactive_file 500\nactive_file 100\nslab 90\n"),
    ):
        (tmp_path / name).write_text(text)
    assert min(machine._allowances(own, tmp_path)) == 610
    (tmp_path / "memory.stat").write_text("inactive_file 10\ntotal_inactive_file 200\ntotal_active_file 0\n")
    assert min(machine._allowances(own, tmp_path)) == 210
    (tmp_path / "memory.stat").write_text("inactive_file 5000\n")
    assert min(machine._allowances(own, tmp_path)) == 1000


def test_groups_of_version_1_are_read_too(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu:/job\n4:memory:/job\n")
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("2000")
    (group / "memory.usage_in_bytes").write_text("500")
    assert min(machine._allowances(own, tmp_path)) == 1500


def test_nobody_bounds_what_has_no_groups(tmp_path):
    assert machine._allowances(tmp_path / "none", tmp_path) == [machine._UNLIMITED]


def test_a_system_that_does_not_say_what_is_free_bounds_nothing(tmp_path):
    told = tmp_path / "meminfo"
    assert machine._free(told) == machine._UNLIMITED
    told.write_text("MemTotal:       16000 kB\n\nHugePages_Total:       0\n")
    assert machine._free(told) == machine._UNLIMITED
    told.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    assert machine._free(told) == 8000 * 1024


WINDOWS = """
import sys
from pathlib import Path
sys.modules["resource"] = None
import torch
from rectiflow.base import machine
machine._PROC = Path("nowhere")
assert machine.available(torch.device("cpu")) == machine._UNLIMITED
machine.forget_peak(torch.device("cpu"))
assert machine.peak(torch.device("cpu")) == 0
"""


def test_a_system_without_either_is_no_obstacle():
    subprocess.run([sys.executable, "-c", WINDOWS], check=True)


PEAKS = """
import torch
from rectiflow.base import machine
cpu = torch.device("cpu")
machine.forget_peak(cpu)
before = machine.peak(cpu)
block = torch.ones(2**24)  # 64 MiB
assert machine.peak(cpu) - before > 0.9 * 2**26
del block
machine.forget_peak(cpu)
assert machine.peak(cpu) < before + 2**25
assert machine.available(cpu) > 2**28
"""


def test_a_peak_is_seen_and_forgotten():
    """In a process of its own: in this one other threads may free what other tests have left."""
    subprocess.run([sys.executable, "-c", PEAKS], check=True)
