"""What the benchmarks share: where results go, on what machine they were taken, and how samples are judged."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import judge_digits
from rectiflow.data.builtin import digits
from rectiflow.data.pictures import to_uint8
from rectiflow.pipeline import Pipeline, Request

RESULTS = Path(__file__).parent / "results"
EACH = 50


def train_keeping(home: Path, recipe: str, settings: Sequence[str]) -> None:
    """Train a recipe in HOME/RECIPE, and copy its model to HOME/m-STEP whenever it is saved anew."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "started").touch()
    command = [sys.executable, "-m", "rectiflow", "train", recipe, "--run", str(home / recipe), "--set", *settings]
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(2)
        _keep(home, recipe)
    if process.returncode:
        sys.exit("training failed")
    _keep(home, recipe)


def _keep(home: Path, recipe: str) -> None:
    there = home / recipe / "model" / "config.json"
    if there.is_file():
        step = json.loads(there.read_text())["training"]["step"]
        if not (home / f"m-{step}").exists():
            shutil.copytree(there.parent, home / f"m-{step}")


def machine() -> dict[str, object]:
    """What a figure was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(name: str, result: dict[str, object]) -> None:
    """Keep a result as `results/NAME.json`, with the command that made it; a folder of this machine is named DIR."""
    script = os.path.relpath(sys.argv[0], RESULTS.parent.parent)
    command = " ".join(["python", script, *("DIR" if os.path.isabs(word) else word for word in sys.argv[1:])])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n")
    print(f"wrote {path}")


def draw(pipeline: Pipeline, seed: int, guidance: float) -> tuple[np.ndarray, np.ndarray]:
    """50 digits of each class by 50 Euler steps, as the command line makes them."""
    samples = pipeline.sample(Request(count=EACH, guidance=guidance, seed=seed))
    return to_uint8(samples.pixels).numpy(), samples.labels.numpy()


def judge(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Figures of the independent judge, which knows all real digits."""
    return {name: round(float(value), 4) for name, value in judge_digits.judge(images, labels).items()}


def judge_on_training_split(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The same figures from the digits of the training split alone: for choosing settings."""
    train = digits().train
    pixels = ((train.fetch(torch.arange(len(train))) + 1) * 8).flatten(1).double().numpy()
    everything = judge_digits.load_digits
    judge_digits.load_digits = lambda: SimpleNamespace(data=pixels, target=train.labels.numpy())
    try:
        return judge(images, labels)
    finally:
        judge_digits.load_digits = everything


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure."""
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}
