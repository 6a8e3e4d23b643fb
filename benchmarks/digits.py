"""Judge the demonstration's digits: python benchmarks/digits.py runs/digits

Five seeds fixed beforehand, 50 digits of each class, Euler with 50 steps, without and with guidance.
"""

import sys
from pathlib import Path

import common
import judge_digits
from rectiflow.base.config import read_yaml
from rectiflow.models.folder import find_model
from rectiflow.pipeline import Pipeline

SEEDS = (101, 102, 103, 104, 105)
WEIGHTS = (0.0, 1.0)


def main(run: str) -> None:
    pipeline = Pipeline.load(run)
    result: dict[str, object] = {
        "settings": {"each": common.EACH, "steps": 50, "solver": "euler", "seeds": SEEDS},
        "run": read_yaml(find_model(Path(run)).parent / "run.yaml"),
        "real_and_mixture": {
            name: common.judge(images, labels) for name, images, labels in judge_digits.baselines(common.EACH)
        },
    }
    for w in WEIGHTS:
        rows = []
        for seed in SEEDS:
            rows.append(common.judge(*common.draw(pipeline, seed, w)))
            print(f"w={w} seed {seed}: {rows[-1]}", flush=True)
        result[f"w={w:g}"] = {"mean": common.mean(rows), "seeds": dict(zip(map(str, SEEDS), rows, strict=True))}
        print(f"w={w} mean: {common.mean(rows)}", flush=True)
    common.write("digits", result)


if __name__ == "__main__":
    main(sys.argv[1])
