"""Text to image on digit-scenes: python benchmarks/adherence.py DIR

Trains recipe `scenes` in DIR/scenes (autoencoder, latents, flow), keeps the model of every thousandth
step, and has the judge read the pictures of held-out prompts: the last model over guidance strengths, the others at the
best of these. Minutes are wall time from the command's first moment: the autoencoder, the latents and previews count.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

import common
from rectiflow.data.scenes import Scenes
from rectiflow.data.sets import open_set
from rectiflow.evaluation.adherence import adherence
from rectiflow.evaluation.adherence_plot import plot_adherence
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import SmallEncoder
from rectiflow.evaluation.judge import judge
from rectiflow.evaluation.prompted import prompted
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.training.log import last_metrics
from rectiflow.training.run_folder import read_run

SETTINGS = ("threads=1", "precision=bfloat16", "latent.train.threads=1", "latent.train.precision=bfloat16")
# Chosen by scenes of the training split: noise at each step mends relations ("above", "left of"), which Euler and the
# multistep solvers settle too early.
SWEEP = EvaluateConfig(count=500, steps=50, solver="ddpm", weights=(0.0, 1.0, 3.0, 5.0, 8.0))
MARKS = (1000, 2000, 4000, 6000, 8000, 10_000)
DOCS = common.RESULTS.parent.parent / "docs"


def by_kind(pipeline: Pipeline, scenes: Scenes, w: float) -> dict[str, dict]:
    """The sweep's prompts at its best w again, those that name places and those that name a relation apart."""
    asked = scenes.scenes(torch.arange(SWEEP.count))
    request = Request(
        prompts=[scene.caption for scene in asked],
        guidance=w,
        steps=SWEEP.steps,
        solver=SWEEP.solver,
        seed=SWEEP.seed,
    )
    pixels, found = pipeline.sample(request).pixels, {}
    for kind, wanted in (("places", False), ("relations", True)):
        rows = [i for i, scene in enumerate(asked) if bool(scene.relation) == wanted]
        found[kind] = asdict(adherence(judge(), pixels[rows], [asked[i] for i in rows]))
    return found


def main(home: Path) -> None:
    if not (home / "scenes" / "evaluation" / "report.json").is_file():
        common.train_keeping(home, "scenes", SETTINGS)
    config = read_run(home / "scenes")
    data = open_set(config.data)
    by = SmallEncoder(data.train)
    models = sorted(home.glob("m-*"), key=lambda folder: int(folder.name[2:]))
    found = prompted(Pipeline.load(models[-1]), data, by, SWEEP)
    plot_adherence(found, DOCS / "adherence.png")
    best, curve = found["best_w"], []
    few = SWEEP.model_copy(update={"count": 200, "weights": (best,)})
    for folder in (folder for folder in models if int(folder.name[2:]) in MARKS):
        row = prompted(Pipeline.load(folder), data, by, few)["rows"][0]
        minutes = ((folder / "config.json").stat().st_mtime - (home / "started").stat().st_mtime) / 60
        shares = {
            part: {n: row[part][n]["value"] for n in ("place", "colour", "digit", "whole")}
            for part in ("seen", "held_out")
        }
        curve.append({"step": int(folder.name[2:]), "minutes": round(minutes, 1), "frechet": row["frechet"], **shares})
        print(curve[-1], flush=True)
    pipeline = Pipeline.load(models[-1])
    kinds = by_kind(pipeline, data.held_out, best)
    print(kinds, flush=True)
    common.write(
        "adherence",
        {
            "settings": SETTINGS,
            "batch": config.batch,
            "parameters": sum(p.numel() for p in pipeline.flow.parameters()),
            "sampling": {
                "solver": SWEEP.solver,
                "steps": SWEEP.steps,
                "prompts": SWEEP.count,
                "curve_prompts": few.count,
            },
            "images_per_second": last_metrics(home / "scenes" / "metrics.jsonl").get("images_per_second"),
            "sweep": found,
            "kinds": kinds,
            "curve": curve,
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(Path(sys.argv[1]))
