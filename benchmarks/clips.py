"""Text to video on digit-clips: python benchmarks/clips.py DIR [SETTING …]

Trains recipe `clips`, with settings laid over it, in DIR/clips (autoencoder, latents, flow) unless it is there, keeps
models of thousands of steps, and has the judge read the clips of held-out prompts: the last model over guidance
strengths by one seed, then at the best of these by others, fixed beforehand; the kept models at that one. Beside it:
real clips through the autoencoder, which no flow can surpass; clips of 17 stills of the same model, each by its own
noise or all by the same; and clips that begin with a given frame. Minutes are wall time from the command's first
moment: everything counts, and so do those of an autoencoder that was trained before, and of the one that it started
from.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

import common
from rectiflow.data.clips import clip_grid, film_strip, save_clip
from rectiflow.data.images import to_float
from rectiflow.data.moving import Movement, MovingDigits
from rectiflow.data.pictures import to_uint8
from rectiflow.data.sets import open_set
from rectiflow.evaluation.adherence_plot import plot_adherence
from rectiflow.evaluation.clip_adherence import clip_adherence
from rectiflow.evaluation.clip_judge import ClipJudge, clip_judge
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import SmallEncoder
from rectiflow.evaluation.one_frame import as_pictures
from rectiflow.evaluation.prompted import prompted
from rectiflow.evaluation.reconstruction import psnr
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.training.run_folder import read_run
from rectiflow.workflow import AUTOENCODER, PICTURES

RECIPE = "clips"
SETTINGS = ("threads=2", "latent.train.threads=2", "latent.pictures.threads=2", "every.save=500")
SWEEP = EvaluateConfig(count=200, steps=50, solver="ddpm", weights=(0.0, 1.0, 3.0, 5.0), seed=0)
SEEDS = (101, 102, 103)  # of the figures at the best w; the sweep, which chooses it, has another
COUNT, CURVE, GIVEN = 200, 100, 50
CURVES = 8  # models of the curve, or up to twice as many
SHOWN, STRIP = 12, 4
DOCS = common.RESULTS.parent.parent / "docs"


def told(run: Path) -> dict[str, object]:
    """What an autoencoder's run was, with its minutes by its own log."""
    config = read_run(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    minutes = max(json.loads(line).get("seconds", 0.0) for line in lines) / 60
    mine = {"recipe": config.recipe, "data": config.data.set, "steps": config.steps, "batch": config.batch}
    return mine | {"threads": config.threads, "minutes": round(minutes, 1)}


def before(run: str) -> list[dict[str, object]]:
    """The autoencoders that a run took, the first trained first."""
    return [*before(read_run(Path(run)).start_from), told(Path(run))] if run else []


def shares(judge: ClipJudge, pixels: Tensor, movements: list[Movement]) -> dict[str, dict]:
    return asdict(clip_adherence(judge, pixels, movements))


def asked(movements: list[Movement], w: float, seed: int) -> Request:
    captions = [movement.caption for movement in movements]
    return Request(prompts=captions, guidance=w, steps=SWEEP.steps, solver=SWEEP.solver, seed=seed)


def stills(pipeline: Pipeline, movements: list[Movement], w: float, seed: Callable[[int], int]) -> Tensor:
    """Clips whose frame t is a picture of its own, by the seed of t."""
    frames = [pipeline.sample(replace(asked(movements, w, seed(t)), frames=1)).pixels for t in range(pipeline.shape[1])]
    return torch.cat(frames, 2)


def from_a_frame(pipeline: Pipeline, held_out: MovingDigits, judge: ClipJudge, w: float) -> dict[str, object]:
    """Clips that begin with the first frame of held-out ones, by the captions of these."""
    index = torch.arange(min(GIVEN, len(held_out)))
    movements = held_out.movements(index)
    first = to_float(held_out.fetch(index))[:, :, :1]
    # Pictures are shared out within a prompt, so each clip is a request of its own, as one user's would be.
    made = torch.cat(
        [
            pipeline.sample(replace(asked([movement], w, SEEDS[0] + i), first=first[i : i + 1])).pixels
            for i, movement in enumerate(movements)
        ]
    )
    each = psnr(made[:, :, 0], first[:, :, 0]).clamp_max(100)  # equal ones are at infinity
    whole = -10 * math.log10(float((10 ** (-each / 10)).mean()))
    return {
        "clips": len(index),
        "psnr_of_mean_error": round(whole, 2),
        "psnr_mean": round(float(each.mean()), 2),
        "psnr_least": round(float(each.min()), 2),
        "adherence": shares(judge, made, movements),
    }


def through_autoencoder(pipeline: Pipeline, held_out: MovingDigits, judge: ClipJudge) -> dict[str, object]:
    """Real held-out clips, encoded and decoded."""
    index = torch.arange(COUNT)
    real, space = to_float(held_out.fetch(index)), pipeline.autoencoder
    with torch.no_grad():
        made = torch.cat([space.decode(space.encode(x), pipeline.size) for x in real.split(25)]).float()
    return {
        "psnr": round(float(psnr(made.transpose(1, 2).flatten(0, 1), real.transpose(1, 2).flatten(0, 1)).mean()), 2),
        "adherence": shares(judge, made, held_out.movements(index)),
        "untouched": shares(judge, real, held_out.movements(index)),
    }


def show(pipeline: Pipeline, held_out: MovingDigits, w: float) -> None:
    """The README's strip and animation: clips of the first held-out captions, by seed 0, none picked."""
    pixels = pipeline.sample(asked(held_out.movements(torch.arange(SHOWN)), w, 0)).pixels
    made = to_uint8(pixels.transpose(1, 2).flatten(0, 1)).unflatten(0, (SHOWN, -1))
    film_strip(made[:STRIP], 9, 3).save(DOCS / "clips_strip.png")
    save_clip(clip_grid(made, SHOWN // 2), DOCS / "clips.gif", 8, {}, scale=2)


def main(home: Path, settings: Sequence[str]) -> None:
    if not (home / RECIPE / "evaluation" / "report.json").is_file():
        common.train_keeping(home, RECIPE, [*SETTINGS, *settings])
    config = read_run(home / RECIPE)
    data, judge = open_set(config.data), clip_judge()
    assert isinstance(data.held_out, MovingDigits)
    by = SmallEncoder(as_pictures(data).train)
    models = sorted(home.glob("m-*000"), key=lambda folder: int(folder.name[2:]))
    models = models[:: -max(1, len(models) // CURVES)][::-1]
    earlier = before(config.latent.autoencoder)
    began = (home / "started").stat().st_mtime - 60 * sum(each["minutes"] for each in earlier)
    pipeline = Pipeline.load(models[-1])
    found = prompted(pipeline, data, by, SWEEP)
    plot_adherence(found, DOCS / "clips.png")
    best = found["best_w"]
    # Other prompts than the sweep's, which chose the w.
    movements = data.held_out.movements(torch.arange(SWEEP.count, SWEEP.count + COUNT))
    seeds = []
    for seed in SEEDS:
        seeds.append({"seed": seed} | shares(judge, pipeline.sample(asked(movements, best, seed)).pixels, movements))
        print(seeds[-1], flush=True)
    curve = []
    for folder in models:
        made = Pipeline.load(folder).sample(asked(movements[:CURVE], best, SEEDS[0])).pixels
        minutes = ((folder / "config.json").stat().st_mtime - began) / 60
        row = {"step": int(folder.name[2:]), "minutes": round(minutes, 1)}
        curve.append(row | shares(judge, made, movements[:CURVE]))
        print(curve[-1], flush=True)
    some = movements[:CURVE]
    apart = stills(pipeline, some, best, lambda t: SEEDS[0] + 1000 * t)
    alike = stills(pipeline, some, best, lambda t: SEEDS[0])
    show(pipeline, data.held_out, best)
    result = {
        # Those of the run itself are in its minutes.
        "autoencoders": earlier or [told(home / RECIPE / name) for name in (PICTURES, AUTOENCODER)],
        "recipe": RECIPE,
        "threads": config.threads,
        "steps": config.steps,
        "batch": config.batch,
        "parameters": sum(p.numel() for p in pipeline.flow.parameters()),
        "sampling": {"solver": SWEEP.solver, "steps": SWEEP.steps, "w": best, "prompts": COUNT, "seeds": SEEDS},
        "sweep": found,
        "seeds": seeds,
        "curve": curve,
        "through_autoencoder": through_autoencoder(pipeline, data.held_out, judge),
        "from_a_frame": from_a_frame(pipeline, data.held_out, judge, best),
        "stills": {
            "noise of its own": shares(judge, apart, some),
            "the same noise": shares(judge, alike, some),
        },
    }
    common.write("clips", result)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(Path(sys.argv[1]), sys.argv[2:])
