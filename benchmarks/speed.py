"""Seconds that a user waits: python benchmarks/speed.py runs/digits

Training time of the run as it was logged; sampling 500 digits in 50 steps with guidance 1; `rectiflow --help`.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import common
from rectiflow.pipeline import Pipeline

REPEATS = 7


def seconds(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(round(time.perf_counter() - start, 3))
    return times[1:]  # the first one warms up


def main(run: str) -> None:
    pipeline = Pipeline.load(run)
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    command = [sys.executable, "-m", "rectiflow", "--help"]
    measured = {
        "sample_500_digits_50_steps_w1": seconds(lambda: common.draw(pipeline, 0, 1.0)),
        "rectiflow_help": seconds(lambda: subprocess.run(command, check=True, capture_output=True)),
    }
    for name, times in measured.items():
        print(f"{name}: median {statistics.median(times):.2f} s of {times}")
    training = max(line["seconds"] for line in lines if "seconds" in line)
    print(f"training: {training:.0f} s")
    result: dict[str, object] = {
        "training_seconds": training,
        "training_steps": max(line["step"] for line in lines),
        "median_seconds": {name: statistics.median(times) for name, times in measured.items()},
        "each": measured,
    }
    common.write("speed", result)


if __name__ == "__main__":
    main(sys.argv[1])
