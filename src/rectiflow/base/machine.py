"""Memory of this machine and of this process, in bytes."""

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from rectiflow.base.errors import InputError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60


def available(device: torch.device) -> int:
    """What a new process may take: of a GPU what is free there, else what the system has and a container allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free(_PROC / "meminfo"), *_allowances(_PROC / "self" / "cgroup", _CGROUPS))


def check_fits(count: int, shape: tuple[int, ...]) -> None:
    """Nothing, if float32 samples fit in the memory that is free, twice over: as parts, and as what these make.

    Args:
        count: how many samples.
        shape: of one, such as C×H×W.

    Raises:
        InputError: they do not; one line.
    """
    needed, free = 2 * torch.float32.itemsize * count * math.prod(shape), available(torch.device("cpu"))
    if needed > free:
        each = "×".join(map(str, shape))
        raise InputError(
            f"{count:,} of {each} take {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} are free; ask for fewer "
            "at once, or for smaller or shorter ones."
        )


def _free(meminfo: Path) -> int:
    free = _told(meminfo, "MemAvailable")
    return _UNLIMITED if free is None else free  # macOS: nobody says


def _told(file: Path, name: str) -> int | None:
    """The bytes that a file of the system tells under a name; None if it does not."""
    lines = file.read_text().splitlines() if file.is_file() else []
    said = next((line.split()[1:] for line in lines if line.startswith(f"{name}:")), [])
    return int(said[0]) * 1024 if said and said[0].isdigit() else None


def _allowances(own: Path, root: Path) -> list[int]:
    """What each control group above this process still allows; no group, no bound."""
    found = [_UNLIMITED]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = base / path.lstrip("/")
        # In a container the path may be the host's, and the group itself lies at the root.
        for folder in (base, *(each for each in (group, *group.parents) if base in each.parents)):
            limit, usage = (_number(folder / name) for name in names)
            if limit is not None and usage is not None and limit < _UNLIMITED:
                found.append(min(limit, max(0, limit - usage + _pages_of_files(folder / "memory.stat"))))
    return found


def _pages_of_files(stat: Path) -> int:
    """What a group holds of files for want of better use, and gives up when memory is asked for."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
    held = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    before = "total_" if "total_inactive_file" in held else ""  # version 1: with the groups below
    return sum(held.get(f"{before}{kind}_file", 0) for kind in ("inactive", "active"))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no bound
        return None


def forget_peak(device: torch.device) -> None:
    """Begin to watch for the greatest memory anew, where the system lets a process do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The greatest memory of this process since `forget_peak`; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    told = _told(_PROC / "self" / "status", "VmHWM")
    if told is not None:
        return told
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def of_children() -> int:
    """What the processes that this one has started hold for themselves, each shared page divided among its holders."""
    return sum(_proportional(number) for number in _children())


def _children() -> Iterator[str]:
    for listed in (_PROC / "self" / "task").glob("*/children"):
        try:
            yield from listed.read_text().split()
        except OSError:
            continue


def _proportional(number: str) -> int:
    try:
        lines = (_PROC / number / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
