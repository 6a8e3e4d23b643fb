"""What `rectiflow plan` forecasts beside what the run then takes: python benchmarks/plan.py [RECIPE …]

Of each recipe, or of those that are named, a short run is forecast, then trained: steps are lowered, and what is done
between steps with them, for both alike. Recipes for a folder get one of generated pictures or clips. Each stands for
itself, with the machine it was measured on, and takes the place of what was found of it before in `results/plan.json`.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import common
from kept import Result, keep, measured
from rectiflow.data.config import CLIP_RATE
from rectiflow.data.sets import write_set
from rectiflow.plan.plan import plan
from rectiflow.recipes.registry import RECIPES
from rectiflow.training.config import EveryConfig, TrainingConfig
from rectiflow.training.generator_config import RunConfig

CHILD = Path(__file__).parent / "plan_child.py"
PICTURES, CLIPS = 320, 64  # of a folder, to train on; and held out
# Steps of the run, and of the autoencoders before it: some minutes on two cores, most of them for what is done between.
STEPS = {"digits": 600, "ddpm": 600, "vae": 600, "gan": 300, "text": 32, "clips": 16, "video": 4, "latent-256": 4}
USUAL, FIRST, FIRST_OF = 80, 60, {"text": 32, "clips": 16, "video": 4, "latent-256": 4}
# What would take hours on two cores is made smaller, for the forecast and the run alike.
SMALLER = {"video": {"batch": 16}, "latent-256": {"size": 64, "batch": 8, "first": 2}}


def lowered(config: TrainingConfig, steps: int, batch: int | None = None) -> TrainingConfig:
    """So many steps, and what is done between them as often as in the whole run."""
    share = steps / config.steps

    def scaled(apart: int) -> int:
        return max(1, round(apart * share)) if apart else 0

    every = EveryConfig.model_validate({name: scaled(apart) for name, apart in config.every.model_dump().items()})
    return config.model_copy(update={"steps": steps, "every": every, "batch": batch or config.batch})


def short(recipe: str, folder: Path) -> TrainingConfig:
    """A recipe's run, made short, on the pictures or clips in `folder` if it takes a folder."""
    config, smaller = RECIPES[recipe](), SMALLER.get(recipe, {})
    config = lowered(config, STEPS.get(recipe, USUAL), smaller.get("batch"))
    data = config.data
    if data.set == "folder":
        update: dict[str, object] = {"dir": str(folder / ("clips" if data.frames > 1 else "pictures"))}
        if data.rate is not None:
            update["rate"] = CLIP_RATE
        data = data.model_copy(update=update | ({"size": smaller["size"]} if "size" in smaller else {}))
    config = config.model_copy(update={"data": data})
    if not isinstance(config, RunConfig) or config.latent is None:
        return config
    stages = {}
    for name in ("train", "pictures"):
        first = getattr(config.latent, name)
        if first is not None:
            stages[name] = lowered(first, FIRST_OF.get(recipe, FIRST), smaller.get("first"))
    return config.model_copy(update={"latent": config.latent.model_copy(update=stages)})


def trained(config: TrainingConfig, folder: Path) -> dict[str, float]:
    """Train a run, by a process that imports no more than a run does, and measure it."""
    asked, run = folder / "asked.json", folder / "run"
    asked.write_text(json.dumps(config.model_dump(mode="json")))
    own = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(CHILD), str(asked), str(run)],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1]), "disk_bytes": disk}


def compared(recipe: str, pictures: Path) -> Result:
    """The forecast of a recipe's short run, then the run."""
    config = short(recipe, pictures)
    began = time.perf_counter()
    here = plan(config).here
    took = time.perf_counter() - began
    told = {
        "seconds": here.total.wall,
        "cpu_seconds": here.total.cpu,
        "peak_bytes": here.memory,
        "disk_bytes": here.disk,
    }
    with TemporaryDirectory() as name:
        found = trained(config, Path(name))
    return {
        "plan_seconds": round(took, 1),
        "steps": {stage.name: stage.steps for stage in here.stages if stage.steps},
        "share_of_steps": round(sum(s.parts["steps"].wall for s in here.stages if s.steps) / here.total.wall, 3),
        "forecast": {name: round(value, 2) for name, value in told.items()},
        "measured": {name: round(value, 2) for name, value in found.items()},
        "ratio": {name: round(told[name] / found[name], 3) for name in told},
        "parts": {s.name: {name: round(cost.wall, 2) for name, cost in s.parts.items()} for s in here.stages},
        **({"smaller": SMALLER[recipe]} if recipe in SMALLER else {}),
    }


def main(recipes: list[str]) -> None:
    with TemporaryDirectory() as name:
        pictures = Path(name)
        write_set("digit-scenes", pictures / "pictures", PICTURES)
        write_set("digit-clips", pictures / "clips", CLIPS)
        for recipe in recipes or RECIPES:
            found = measured(partial(compared, recipe, pictures), f"python benchmarks/plan.py {recipe}")
            keep(common.RESULTS / "plan.json", recipe, found)
            print(recipe, json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
