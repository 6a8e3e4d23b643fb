"""Seconds from the start of a process to its first picture, beside diffusers: a U-Net in pixel space, 20 steps.

Each turn is a fresh process that imports, loads a model of about the same size from disk, makes one picture and writes
it as a PNG; files are in the disk's cache.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers import DDIMPipeline, DDIMScheduler

from kept import Result
from peers import PeerUNet
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.pipeline import Pipeline
from throughput_of.networks import UNET

STEPS = 20
_TIMED = """
import json, sys, time
began = time.perf_counter()
{imports}
imported = time.perf_counter()
{load}
loaded = time.perf_counter()
{draw}
drawn = time.perf_counter()
print(json.dumps({{"import": imported - began, "load": loaded - imported, "picture": drawn - loaded}}))
"""
PROGRAMS = {
    "rectiflow": _TIMED.format(
        imports="from rectiflow.data.pictures import save_png, to_uint8\n"
        "from rectiflow.pipeline import Pipeline, Request\nfrom pathlib import Path\nfrom PIL import Image",
        load="pipeline = Pipeline.load(sys.argv[1])",
        draw=f"made = pipeline.sample(Request(count=1, steps={STEPS})).pixels\n"
        "Image.fromarray(to_uint8(made)[0].numpy()).save(sys.argv[2])",
    ),
    "diffusers": _TIMED.format(
        imports="from diffusers import DDIMPipeline",
        load="pipeline = DDIMPipeline.from_pretrained(sys.argv[1])\npipeline.set_progress_bar_config(disable=True)",
        draw=f"pipeline(batch_size=1, num_inference_steps={STEPS}).images[0].save(sys.argv[2])",
    ),
}


def models(folder: Path) -> dict[str, Path]:
    """One of each owner, with random weights."""
    config = UNET.model_copy(update={"classes": 0})
    Pipeline(Flow.build(build(config), FlowConfig()), FlowConfig(), config, (3, 32, 32)).save(folder / "rectiflow")
    DDIMPipeline(PeerUNet(classes=0).net, DDIMScheduler()).save_pretrained(folder / "diffusers")
    return {owner: folder / owner for owner in PROGRAMS}


def one(command: list[str]) -> dict[str, float]:
    """Seconds of a fresh process, and of its parts if it tells them."""
    began = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    whole = time.perf_counter() - began
    told = json.loads(out.splitlines()[-1]) if out.rstrip().endswith("}") else {}
    return {"whole": whole, **told}


def startup(rounds: int) -> Result:
    """Medians of each owner's parts; our command line beside them."""
    with TemporaryDirectory() as name:
        home = Path(name)
        commands = {
            owner: [sys.executable, "-c", PROGRAMS[owner], str(folder), str(home / "made.png")]
            for owner, folder in models(home).items()
        }
        commands["rectiflow sample"] = [
            *(sys.executable, "-m", "rectiflow", "sample", str(home / "rectiflow"), "--count", "1"),
            *("--steps", str(STEPS), "--out", str(home / "sampled.png")),
        ]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name in (list(commands), list(reversed(commands)))[turn % 2]:
                found[name].append(one(commands[name]))
    seconds = {
        name: {part: round(statistics.median(row[part] for row in rows[1:]), 3) for part in rows[0]}
        for name, rows in found.items()
    }
    return {
        "settings": {"steps": STEPS, "rounds": rounds, "shape": [3, 32, 32]},
        "seconds": seconds,
        "ratio": round(seconds["diffusers"]["whole"] / seconds["rectiflow"]["whole"], 2),
        "each": {name: [round(row["whole"], 3) for row in rows[1:]] for name, rows in found.items()},
    }
