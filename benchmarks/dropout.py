"""Condition dropout of 10 % against the textbook's 50 %: python benchmarks/dropout.py

The digits recipe is trained with each, twice, and judged by the training split alone: this chooses the default.
"""

import tempfile
from pathlib import Path

from rich.console import Console

import common
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.training.run import train

DROPOUTS = (0.1, 0.5)
TRAINING_SEEDS = (1, 2)
SAMPLING_SEEDS = (201, 202)
WEIGHTS = (0.0, 1.0)


def main() -> None:
    rows: dict[float, dict[float, list[dict[str, float]]]] = {p: {w: [] for w in WEIGHTS} for p in DROPOUTS}
    for seed in TRAINING_SEEDS:
        for dropout in DROPOUTS:  # in turn, so that a busy machine meets both alike
            settings = [f"condition_dropout={dropout}", f"seed={seed}", "every={held_out: 0, preview: 0}"]
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                train(resolve("digits", settings=settings), run, Console(quiet=True))
                pipeline = Pipeline.load(run)
            for w in WEIGHTS:
                for sampling_seed in SAMPLING_SEEDS:
                    rows[dropout][w].append(common.judge_on_training_split(*common.draw(pipeline, sampling_seed, w)))
                print(f"dropout {dropout}, seed {seed}, w={w}: {common.mean(rows[dropout][w][-3:])}", flush=True)
    result: dict[str, object] = {
        "settings": {"training_seeds": TRAINING_SEEDS, "sampling_seeds": SAMPLING_SEEDS, "judge": "training split"},
        "dropout": {
            str(p): {f"w={w:g}": {"mean": common.mean(rows[p][w]), "each": rows[p][w]} for w in WEIGHTS}
            for p in DROPOUTS
        },
    }
    common.write("dropout", result)


if __name__ == "__main__":
    main()
