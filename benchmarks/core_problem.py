"""Why flows: a VAE's prior, a GAN and a flow of one network and equal training time: python benchmarks/core_problem.py

Side by side on a ring of eight Gaussians in two dimensions and on the handwritten digits. All three train the same
transformer by AdamW on the same batches; each trains for as many steps as fit the same seconds, measured on its own
steps beforehand. Rates are the best of a few, judged on the training split (`--choose`); the GAN's first moment is
off, as is its custom. A VAE has an encoder beside its decoder and a GAN a critic beside its generator: that second
network is as large as the first and is not counted as size, but its time is.
"""

import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from scipy.spatial.distance import cdist
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score

import common
from rectiflow.data.builtin import digits
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.data.pictures import grid, to_uint8
from rectiflow.flow.flow import Flow
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.interrupt import Interrupt
from rectiflow.training.log import RunLog
from rectiflow.training.run import STAGES
from rectiflow.training.trainer import Trainer

matplotlib.use("Agg")
from matplotlib import pyplot

CPU = torch.device("cpu")
SECONDS = {"ring": 60.0, "digits": 100.0}
SEEDS = (301, 302, 303)
KINDS = {"vae": "VAE, its prior", "gan": "GAN", "digits": "rectified flow, 50 steps"}
RATES = {"vae": (2e-3, 5e-3, 1e-2), "gan": (1e-3, 2e-3, 5e-3), "digits": (1e-2, 2e-2)}
CHOSEN = {
    "ring": {"vae": 5e-3, "gan": 1e-3, "digits": 1e-2},
    "digits": {"vae": 5e-3, "gan": 2e-3, "digits": 2e-2},
}
MODES, RADIUS, SPREAD = 8, 0.7, 0.05
PLOT = Path(__file__).parent.parent / "docs" / "core_problem.png"


def ring(count: int, seed: int) -> np.ndarray:
    """Points of eight Gaussians on a circle, count×2."""
    draws = np.random.default_rng(seed)
    angle = 2 * np.pi * draws.integers(MODES, size=count) / MODES
    return RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1) + SPREAD * draws.standard_normal((count, 2))


def points() -> ImageSet:
    """The ring as pictures of 2×1×1, without labels."""
    parts = [torch.from_numpy(ring(count, seed)).float()[:, :, None, None] for count, seed in ((20_000, 1), (1000, 2))]
    train, held_out = (InMemory(part, torch.full((len(part),), -1)) for part in parts)
    return ImageSet(train, held_out, ())


def settings(kind: str, problem: str, rate: float) -> RunConfig:
    """A run of one kind; everything but the objective and the rate is shared."""
    network = "network={patch: 1, width: 64, depth: 3, heads: 2}"
    shared = [network, "data.dequantise=0", "batch=256"] if problem == "ring" else []
    every = "every={log: 50, held_out: 0, preview: 0, save: 0}"
    return resolve(kind, settings=[*shared, every, f"optimiser.lr={rate}", "precision=float32"])


def trained(kind: str, problem: str, data: ImageSet, rate: float, seconds: float) -> tuple[Flow, dict[str, float]]:
    """A model trained for as many steps as take so many seconds."""
    config = settings(kind, problem, rate)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trainer(STAGES[config.objective](config, data, CPU), config, Path(folder), CPU)
        for step in range(10):
            trial._train(step)
        start = time.perf_counter()
        for step in range(10, 42):
            trial._train(step)
        steps = max(100, int(seconds / (time.perf_counter() - start) * 32))
        config = config.model_copy(update={"steps": steps})
        stage = STAGES[config.objective](config, data, CPU)
        trainer = Trainer(stage, config, Path(folder), CPU)
        start = time.perf_counter()
        with RunLog(Path(folder), 0, steps, Console(quiet=True)) as log, Interrupt() as interrupt:
            trainer.fit(log, interrupt)
        facts = {
            "steps": steps,
            "seconds": round(time.perf_counter() - start, 1),
            "parameters": sum(p.numel() for p in stage.flow.parameters()),
            "parameters_trained": sum(p.numel() for p in stage.module.parameters()),
            "rate": rate,
        }
        return stage.flow_of(trainer.ema.module), facts


def drawn(flow: Flow, seed: int, count: int = 2000) -> np.ndarray:
    """Points of a model of the ring, count×2."""
    z = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    steps = 1 if flow.one_step else 50
    return sample(flow, z, solver("euler"), steps).flatten(1).double().numpy()


def judge_points(made: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Share within 3 deviations of a mode, modes with a quarter of their share, energy distance, told_apart."""
    angle = 2 * np.pi * np.arange(MODES) / MODES
    distance = cdist(made, RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1))
    near = distance.min(1) < 3 * SPREAD
    counts = np.bincount(distance.argmin(1)[near], minlength=MODES)
    energy = 2 * cdist(made, real).mean() - cdist(made, made).mean() - cdist(real, real).mean()
    x, y = np.concatenate([made, real]), np.repeat([0, 1], [len(made), len(real)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    told = cross_val_score(HistGradientBoostingClassifier(max_iter=100, random_state=0), x, y, cv=folds).mean()
    return {
        "on_a_mode": round(float(near.mean()), 4),
        "modes": float((counts > len(made) / MODES / 4).sum()),
        "energy_distance": round(float(energy), 5),
        "told_apart": round(float(told), 4),
    }


def pipeline_of(flow: Flow, kind: str) -> Pipeline:
    """A digits model as its user holds it."""
    data, config = digits(), settings(kind, "digits", 1e-2)
    stage = STAGES[config.objective](config, data, CPU)
    pipeline = stage._pipeline(stage.module, 0)
    pipeline.flow = flow
    return pipeline


def choose(problem: str) -> None:
    """Print the figures of each rate, judged on the training split; a third of the time each."""
    data = points() if problem == "ring" else digits()
    for kind, rates in RATES.items():
        for rate in rates:
            flow, facts = trained(kind, problem, data, rate, SECONDS[problem] / 3)
            if problem == "ring":
                figures = judge_points(drawn(flow, 200), ring(2000, 1))
            else:
                figures = common.judge_on_training_split(*common.draw(pipeline_of(flow, kind), 201, 0.0))
            print(problem, kind, rate, facts["steps"], figures, flush=True)


def main() -> None:
    if "--choose" in sys.argv:
        for problem in SECONDS:
            choose(problem)
        return
    result: dict[str, object] = {"settings": {"seconds": SECONDS, "seeds": SEEDS}}
    figure, axes = pyplot.subplots(2, 4, figsize=(12, 6.4))
    real = ring(2000, 3)
    axes[0][0].scatter(*real.T, s=1)
    held_out = digits().held_out
    rows = [held_out.fetch(torch.nonzero(held_out.labels == label).flatten()[:8]) for label in range(10)]
    axes[1][0].imshow(np.asarray(grid(to_uint8(torch.cat(rows)), 8, 4)), cmap="gray")
    axes[0][0].set_title("real")
    ring_rows: dict[str, object] = {"real": judge_points(ring(2000, 4), real)}
    digit_rows: dict[str, object] = {}
    for column, (kind, title) in enumerate(KINDS.items(), start=1):
        flow, facts = trained(kind, "ring", points(), CHOSEN["ring"][kind], SECONDS["ring"])
        judged = [judge_points(drawn(flow, seed), real) for seed in SEEDS]
        ring_rows[title] = {"mean": common.mean(judged), "each": judged, **facts}
        print(title, ring_rows[title], flush=True)
        axes[0][column].scatter(*drawn(flow, SEEDS[0]).T, s=1)
        axes[0][column].set_title(title)
        flow, facts = trained(kind, "digits", digits(), CHOSEN["digits"][kind], SECONDS["digits"])
        drawings = [common.draw(pipeline_of(flow, kind), seed, 0.0) for seed in SEEDS]
        judged = [common.judge(*drawing) for drawing in drawings]
        digit_rows[title] = {"mean": common.mean(judged), "each": judged, **facts}
        print(title, digit_rows[title], flush=True)
        first = drawings[0][0].reshape(10, common.EACH, *drawings[0][0].shape[1:])[:, :8]
        sheet = grid(torch.from_numpy(first.reshape(-1, *first.shape[2:])), 8, 4)
        axes[1][column].imshow(np.asarray(sheet), cmap="gray")
    for axis in axes[0]:
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(PLOT, dpi=80)
    result["ring"], result["digits"] = ring_rows, digit_rows
    common.write("core_problem", result)


if __name__ == "__main__":
    main()
