"""Quality of the demonstration's digits against evaluations of the network: python benchmarks/quality.py runs/digits

What `rectiflow compare` does, over every kind of solver; the plot goes into docs/quality.png.
"""

import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path

import common
from rectiflow.data.builtin import digits
from rectiflow.evaluation.compare import compare
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.solvers import solver

SOLVERS = ("euler", "heun", "ab2-pec", "dpm++2m", "unipc2", "fast", "ddpm", "sde-dpm++2m")
EVALUATIONS = (6, 12, 24, 50)
DOCS = Path(__file__).parent.parent / "docs"


def main(run: str) -> None:
    ways = [
        EvaluateConfig(solver=name, steps=max(1, cost // solver(name).evaluations), count=382)
        for name, cost in product(SOLVERS, EVALUATIONS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = compare({run: Pipeline.load(run)}, digits(), ways, Path(folder), print)
        shutil.copy(Path(folder, "compare.png"), DOCS / "quality.png")
    common.write("quality", {"rows": rows})


if __name__ == "__main__":
    main(sys.argv[1])
