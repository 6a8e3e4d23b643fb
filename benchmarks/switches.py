"""What each switch of the trainer costs and gives: python benchmarks/switches.py

Speed and memory: a transformer of width 128 and depth 4 on 16×16×1 pictures drawn at random (64 tokens, batch 32), and
a U-Net of width 32 for the switches that concern convolutions. Each switch is timed in turn with its network's
baseline, pair by pair in alternating order. Memory is what the forward pass of a step
keeps for the backward pass, counted by saved-tensor hooks (storages once, weights left out).

Loss: a smaller, shorter digits recipe, two seeds, all of a seed from the same weights and draws; the held-out loss of
the averaged weights after the last step. It compares mechanisms after equal steps; no setting is chosen by it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import common
from rectiflow.data.builtin import digits
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.recipes.registry import resolve
from rectiflow.training.blocks import apply_switches
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.log import last_metrics
from rectiflow.training.parts import parts
from rectiflow.training.post_hoc import post_hoc
from rectiflow.training.run import train
from rectiflow.training.run_folder import read_run
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
PAIRS, STEPS_TIMED = 5, 4
TRANSFORMER = "network={width: 128, depth: 4, heads: 4, patch: 2}"
UNET = "network={kind: unet, width: 32}"
BASE = ["batch=32", "precision=float32"]
SPEED: dict[str, list[str]] = {
    "baseline": [TRANSFORMER],
    "optimiser.kind=muon": [TRANSFORMER, "optimiser.kind=muon"],
    "accumulate=4": [TRANSFORMER, "accumulate=4"],
    "ema.kind=power": [TRANSFORMER, "ema.kind=power"],
    "activation_checkpointing=true": [TRANSFORMER, "activation_checkpointing=true"],
    "channels_last=true": [TRANSFORMER, "channels_last=true"],
    "compile=true": [TRANSFORMER, "compile=true"],
    "U-Net": [UNET],
    "U-Net, channels_last=true": [UNET, "channels_last=true"],
    "U-Net, compile=true": [UNET, "compile=true"],
    "U-Net, channels_last=true compile=true": [UNET, "channels_last=true", "compile=true"],
}
SEEDS, STEPS = (1, 2), 300
SMALL = ["network={patch: 4, width: 64, depth: 4, heads: 2}", "batch=64", "optimiser.warmup=30", "threads=1"]
LOSS: dict[str, list[str]] = {
    "adamw, lr=0.02, linear, ema=0.985": [],
    "adamw, lr=0.01": ["optimiser.lr=0.01"],
    "muon, lr=0.02": ["optimiser.kind=muon"],
    "muon, lr=0.01": ["optimiser.kind=muon", "optimiser.lr=0.01"],
    "constant": ["optimiser.decay=constant"],
    "cosine": ["optimiser.decay=cosine"],
    "trapezoid": ["optimiser.decay=trapezoid"],
    "ema=0 (the weights themselves)": ["ema=0"],
    "constant, power average of length 0.05": ["optimiser.decay=constant", "ema.kind=power", "every.average=25"],
}
LENGTHS = (0.03, 0.05, 0.075, 0.1, 0.15)


def pictures(count: int = 256) -> ImageSet:
    """Random pictures of 16×16×1: for speed alone."""
    given = digits()
    pixels = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = InMemory(pixels, torch.arange(count) % 10)
    return ImageSet(images, images, given.class_names, given.levels)


def trainer(settings: Sequence[str], folder: Path) -> Trainer:
    config = resolve("digits", settings=[*BASE, *settings])
    stage = FlowStage(config, pictures(), CPU)
    apply_switches(stage.module, config)
    return Trainer(stage, config, folder, CPU)


def images_per_second(subject: Trainer) -> float:
    start = time.perf_counter()
    for _ in range(STEPS_TIMED):
        subject._train(subject.step)
        subject.step += 1
    return STEPS_TIMED * subject.config.batch / (time.perf_counter() - start)


def kept_megabytes(subject: Trainer) -> float:
    """What the forward pass of a step, or of its largest part, keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in subject.stage.module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = subject.stage.loss(0, parts(subject.config)[0])
    del loss
    return sum(kept.values()) / 1e6


def speed(name: str, folder: Path) -> dict[str, object]:
    """A switch and the baseline in turn; the first round warms up (and compiles)."""
    base = trainer(SPEED["U-Net" if name.startswith("U-Net") else "baseline"], folder)
    switched = trainer(SPEED[name], folder)
    rows: list[tuple[float, float]] = []
    for pair in range(PAIRS + 1):
        if pair % 2:
            second = images_per_second(switched)
            rows.append((images_per_second(base), second))
        else:
            first = images_per_second(base)
            rows.append((first, images_per_second(switched)))
    ratios = [second / first for first, second in rows[1:]]
    return {
        "images_per_second": round(statistics.median(second for _, second in rows[1:]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "kept_megabytes": round(kept_megabytes(switched), 2),
    }


def held_out(config: RunConfig, folder: Path) -> dict[str, float]:
    """Held-out loss of the model after the last step, and of other lengths if its averages are power averages."""
    train(config, folder, QUIET)
    losses = {"": last_metrics(folder / "metrics.jsonl")["held_out_loss"]}
    if config.ema.kind == "power":
        stage = FlowStage(read_run(folder), digits(), CPU)
        for length in LENGTHS:
            stage.module.load_state_dict(post_hoc(folder, length).weights)
            losses[f", length {length} post hoc"] = stage.held_out(stage.module)["held_out_loss"]
    return losses


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, object] = {
        "settings": {"speed": BASE, "loss": SMALL, "seeds": SEEDS, "steps": STEPS, "pairs": PAIRS},
        "load_average": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for name in SPEED:
            measured[name] = speed(name, Path(folder))
            print(f"{name}: {measured[name]}", flush=True)
        each: dict[str, list[float]] = {}
        for seed in SEEDS:
            for number, (name, settings) in enumerate(LOSS.items()):
                every = f"every={{log: 100, held_out: {STEPS}, preview: 0, save: {STEPS}}}"
                config = resolve("digits", settings=[*SMALL, f"seed={seed}", f"steps={STEPS}", every, *settings])
                for kind, loss in held_out(config, Path(folder) / f"{seed}-{number}").items():
                    each.setdefault(name + kind, []).append(round(loss, 4))
                    print(f"seed {seed}, {name}{kind}: {loss:.4f}", flush=True)
    result["speed"] = measured
    result["loss"] = {name: {"mean": round(statistics.mean(v), 4), "each": v} for name, v in each.items()}
    common.write("switches", result)


if __name__ == "__main__":
    main()
