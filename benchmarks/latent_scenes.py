"""A flow in latents beside the same network in pixels: python benchmarks/latent_scenes.py DIR

digit-scenes, 32×32. Both flows are transformers of one size on as many tokens (64): patches of 4 in pixels, single
latents of factor 4. Fréchet distance, by the same encoder of the training pictures, over the wall time of the training,
the autoencoder's counted and not counted. Sampling and scoring are not counted on either side.
"""

import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

import common
from rectiflow.data.images import ImageSet
from rectiflow.data.latents import fingerprint, open_latents
from rectiflow.data.pictures import grid, save_png, to_uint8
from rectiflow.data.sets import open_set
from rectiflow.evaluation.features import Features, SmallEncoder
from rectiflow.evaluation.memory import some
from rectiflow.evaluation.metrics import frechet_distance
from rectiflow.evaluation.reconstruction import psnr
from rectiflow.models.autoencoder import digest, load_autoencoder
from rectiflow.pipeline import Request
from rectiflow.recipes.registry import resolve
from rectiflow.training.run import train
from rectiflow.training.stages import FlowStage, Latents
from rectiflow.training.trainer import Trainer
from rectiflow.workflow import encode

CPU = torch.device("cpu")
STEPS, MARKS, COUNT, FIRST = 900, (150, 300, 600, 900), 500, 800
DATA = "data={set: digit-scenes, size: null}"
FLOW = (
    DATA,
    f"steps={STEPS}",
    "batch=64",
    "precision=bfloat16",
    "optimiser={lr: 0.002, decay: linear}",
    "ema=0.99",
    "times.density=logit-normal",
)
NETWORK = "width: 128, depth: 6, heads: 4, label_std: 0.02"
PIXELS = (f"network={{patch: 4, {NETWORK}}}", "flow.prediction=data")
LATENTS = (f"network={{patch: 1, {NETWORK}}}",)
AUTOENCODER = (
    "data={set: digit-scenes, size: null, crop: center, flip: false}",
    "network={width: 16, multipliers: [1, 2, 4], latent_channels: 8, linear: true}",
    "loss={absolute: 1, square: 5, structure: 0.2}",
    "discriminator.weight=0",
    f"steps={FIRST}",
    "batch=16",
    "precision=bfloat16",
    "every={log: 50, held_out: 400, preview: 400, first_preview: 0, save: 800}",
)


def distance(stage: FlowStage, trainer: Trainer, by: Features, real: torch.Tensor) -> float:
    pipeline = stage._pipeline(trainer.ema.module, trainer.step)
    made = pipeline.sample(Request(count=COUNT, steps=20, solver="ab2", seed=1)).pixels
    return round(frechet_distance(by(made.clamp(-1, 1)), real), 4)


def curve(stage: FlowStage, folder: Path, by: Features, real: torch.Tensor) -> list[dict[str, float]]:
    trainer, seconds, points = Trainer(stage, stage.config, folder, CPU), 0.0, []
    while trainer.step < STEPS:
        began = time.perf_counter()
        trainer._train(trainer.step)
        seconds += time.perf_counter() - began
        trainer.step += 1
        if trainer.step in MARKS:
            points.append(
                {"step": trainer.step, "seconds": round(seconds, 1), "frechet": distance(stage, trainer, by, real)}
            )
            print(folder.name, points[-1], flush=True)
    trainer.save()
    return points


def latents_of(home: Path, name: str, settings: tuple[str, ...], data: ImageSet) -> tuple[Latents, dict[str, float]]:
    """An autoencoder and its latents, with the seconds that both took."""
    console, run = Console(quiet=True), home / name
    train(resolve("autoencoder", settings=settings), run, console)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    space = load_autoencoder(str(run))
    config, began = resolve("latent", settings=(*FLOW, *LATENTS)), time.perf_counter()
    encode(space, data, home / f"{name}-latents", config, console)
    spent = time.perf_counter() - began
    x, _ = some(data.held_out, 0, 256)
    with torch.no_grad():
        quality = float(psnr(space.decode(space.encode(x)), x).mean())
    made_by = fingerprint(digest(space), data, config.data, config.latent.cache)
    facts = {
        "autoencoder_seconds": round(max(line["seconds"] for line in lines), 1),
        "encoding_seconds": round(spent, 1),
        "held_out_psnr": round(quality, 2),
    }
    return Latents(space, open_latents(home / f"{name}-latents", made_by, data)), facts


def picture(home: Path) -> None:
    """docs/latent_scenes.png: ten samples of the flow in latents above ten of the one in pixels, of a finished run."""
    rows = []
    for name, recipe, settings in (("latents", "latent", LATENTS), ("pixels", "folder", PIXELS)):
        config, latents = resolve(recipe, settings=(*FLOW, *settings)), None
        data = open_set(config.data)
        if name == "latents":
            space = load_autoencoder(str(home / "autoencoder-latents"))
            made_by = fingerprint(digest(space), data, config.data, config.latent.cache)
            latents = Latents(space, open_latents(home / "autoencoder-latents-latents", made_by, data))
        stage = FlowStage(config, data, CPU, latents)
        trainer = Trainer(stage, config, home / name, CPU)
        trainer.restore(print)
        pipeline = stage._pipeline(trainer.ema.module, trainer.step)
        rows.append(pipeline.sample(Request(count=10, steps=20, solver="ab2", seed=1)).pixels)
    save_png(grid(to_uint8(torch.cat(rows)), 10, 2), common.RESULTS.parent.parent / "docs" / "latent_scenes.png", {})


def main(home: Path, equivariance: float = 0.5) -> None:
    home.mkdir(parents=True, exist_ok=True)
    pixels, latent = resolve("folder", settings=(*FLOW, *PIXELS)), resolve("latent", settings=(*FLOW, *LATENTS))
    data = open_set(pixels.data)
    by = SmallEncoder(data.train, steps=150)
    real = by(some(data.held_out, 0, COUNT)[0])
    result: dict[str, object] = {
        "settings": {"flow": FLOW, "pixels": PIXELS, "latents": LATENTS, "autoencoder": AUTOENCODER},
        "count": COUNT,
        "real": round(frechet_distance(by(some(data.train, 1, COUNT)[0]), real), 4),
    }
    for name, extra in (("latents", ()), ("equivariant", (f"loss.equivariance={equivariance}",))):
        latents, facts = latents_of(home, f"autoencoder-{name}", (*AUTOENCODER, *extra), data)
        print(name, facts, flush=True)
        x, _ = some(data.held_out, 0, COUNT)
        with torch.no_grad():
            made = torch.cat([latents.autoencoder.decode(latents.autoencoder.encode(part)) for part in x.split(64)])
        facts["reconstruction_frechet"] = round(frechet_distance(by(made.clamp(-1, 1)), real), 4)
        points = curve(FlowStage(latent, data, CPU, latents), home / name, by, real)
        result[name] = {**facts, "curve": points}
    result["pixels"] = {"curve": curve(FlowStage(pixels, data, CPU), home / "pixels", by, real)}
    common.write("latent_scenes", result)
    picture(home)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
