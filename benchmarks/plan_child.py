"""A run in a process of its own, for plan.py: python benchmarks/plan_child.py SETTINGS.json RUN.

It prints what it took beside wall time. The peak is of this process since it began: that which the system keeps for a
process and its parents, `ru_maxrss`, would be the parent's where that was larger.
"""

import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from rectiflow.base import machine
from rectiflow.plan.child import parsed
from rectiflow.workflow import run

if __name__ == "__main__":
    run(parsed(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), Console(quiet=True))
    peak = machine.peak(torch.device("cpu"))
    print(json.dumps({"cpu_seconds": time.process_time(), "peak_bytes": peak}), flush=True)
