"""Where results of several parts are kept, each part with the conditions that it was measured under."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import common
from rectiflow.base.files import write_text

Result = dict[str, object]


def busy() -> float:
    """Processor seconds that this machine has worked since it started; 0 where that cannot be read."""
    try:
        words = Path("/proc/stat").read_text().split()
    except OSError:
        return 0.0
    return sum(int(words[i]) for i in (1, 2, 3)) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    """Processor seconds of this process and of those it has started and waited for."""
    return sum(os.times()[:4])


def measured(call: Callable[[], Result], command: str) -> Result:
    """What `call` finds, with the command, the machine, and what else it did meanwhile."""
    load, worked, mine, began = os.getloadavg()[0], busy(), own(), time.perf_counter()
    found = call()
    seconds = time.perf_counter() - began
    others = (busy() - worked - (own() - mine)) / seconds
    return {
        "command": command,
        "machine": common.machine(),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "cores_used_by_others": round(max(0.0, others), 2),
        "took_seconds": round(seconds, 1),
        **found,
    }


def kept(path: Path) -> Result:
    """The parts in a file of results; none if there is no file, or one of the time before results had parts."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {} if "machine" in found else found


def keep(path: Path, part: str, result: Result) -> None:
    """Put a part in place of what the file has of it; the others stay as they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**kept(path), part: result}, indent=1) + "\n")
