"""What it costs to train by two processes instead of one: the same run, the same batches, one thread each.

Processor seconds of the training loop, of both processes together over those of the one; starting up, which each
process does once, is told beside. What two processes cost by being two, on half the batch each and with one machine to
share, is seen from two runs that know nothing of each other. Run as a program it trains, and writes down what this
process took.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

AIM = 0.15
WAYS = ("one", "two", "apart")  # a process; two of a job; two that know nothing of each other
QUIET = "every={log: 20, held_out: 0, preview: 0, first_preview: 0, save: 0}"
CASES = {
    "recipe digits": ["steps=200"],
    "width 256, depth 6, 64 tokens": [
        "data.set=digit-scenes",
        "network={patch: 4, width: 256, depth: 6, heads: 8}",
        "batch=32",
        "steps=30",
    ],
}


def child(out: Path, run: Path, settings: list[str]) -> None:
    """Train in this process, of a job or not, and say what its loop took."""
    from rich.console import Console

    from rectiflow.base.ranks import joined, rank
    from rectiflow.recipes.registry import resolve
    from rectiflow.training.log import last_metrics
    from rectiflow.training.run import train
    from rectiflow.training.trainer import Trainer

    fit, took = Trainer.fit, {}

    def timed(trainer: Trainer, log: Any, interrupt: Any) -> bool:
        wall, cpu = time.perf_counter(), time.process_time()
        done = fit(trainer, log, interrupt)
        took.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
        return done

    with joined(), patch.object(Trainer, "fit", timed):
        number = rank()
        train(resolve("digits", settings=settings), run, Console(quiet=True))
        loss = last_metrics(run / "metrics.jsonl").get("loss") if number == 0 else None
    (out / f"{number}.json").write_text(json.dumps({**took, "whole_cpu": time.process_time(), "loss": loss}))


def once(way: str, settings: list[str]) -> dict[str, float]:
    """One run, or two on half the batch each: seconds of the loop, and of the processor over all processes.

    Args:
        way: of `WAYS`.
        settings: of the run.
    """
    with TemporaryDirectory() as name:
        home = Path(name)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if way == "two" else []
        children = [home / "0", home / "1"] if way == "apart" else [home / "0"]
        started = []
        for place in children:
            (place / "out").mkdir(parents=True)
            command = [sys.executable, *launch, __file__, str(place / "out"), str(place / "run"), *settings]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for process in started:
            said, _ = process.communicate()
            if process.returncode:
                sys.exit(f"{process.args}: {said.decode()[-2000:]}")
        told = [json.loads(path.read_text()) for path in sorted(home.glob("*/out/*.json"))]
    assert len(told) == (1 if way == "one" else 2)
    return {
        "wall": max(row["wall"] for row in told),
        "cpu": sum(row["cpu"] for row in told),
        "whole_cpu": sum(row["whole_cpu"] for row in told),
        "loss": told[0]["loss"],
    }


def summed(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Of one case, by the number of processes."""
    medians = {
        way: {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
        for way, rows in runs.items()
    }
    one, two, apart = (medians[way] for way in WAYS)
    return {
        "added": round(two["cpu"] / one["cpu"] - 1, 4),
        "added_by_being_two": round(apart["cpu"] / one["cpu"] - 1, 4),
        "added_by_the_job": round((two["cpu"] - apart["cpu"]) / one["cpu"], 4),
        "added_with_start": round(two["whole_cpu"] / one["whole_cpu"] - 1, 4),
        "wall_ratio": round(two["wall"] / one["wall"], 4),
        "medians": medians,
        "each": {way: [round(row["cpu"], 3) for row in rows] for way, rows in runs.items()},
    }


def ddp(rounds: int) -> dict[str, Any]:
    """Both cases, each way in turns."""
    from rectiflow.recipes.registry import resolve
    from throughput_of.sides import has_bfloat16

    precision = f"precision={'bfloat16' if has_bfloat16() else 'float32'}"
    cases = {}
    for name, settings in CASES.items():
        half = [f"batch={resolve('digits', settings=settings).batch // 2}"]
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            first = number % len(WAYS)
            for way in (*WAYS[first:], *WAYS[:first]):
                own = [*settings, *(half if way == "apart" else []), QUIET, precision, "threads=1", "watch=[]"]
                runs[way].append(once(way, own))
        cases[name] = summed(runs)
        print(name, cases[name], flush=True)
    return {"settings": {"rounds": rounds, "cases": CASES, "precision": precision}, "aim": AIM, "cases": cases}


if __name__ == "__main__":
    with suppress(ValueError):  # what lies beside this file has names of its own, and is no part of the child
        sys.path.remove(str(Path(__file__).parent))
    child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
