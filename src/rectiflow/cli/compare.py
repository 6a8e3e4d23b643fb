"""`rectiflow compare`: quality against cost, over models and ways of sampling."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class Compare:
    """Compare models, and ways of sampling them, in one table and one plot of quality against cost.

    Args:
        runs: Run folders of models of the same pictures; the first one's data are the reference.
        out: Folder of compare.md, compare.json and compare.png.
        solvers: As for rectiflow sample; settings after a colon.
        steps: Intervals of each solver; a solver of several stages takes as many fewer, so that its cost is the same.
        guidance: Weights w ≥ 0.
        count: Samples of each.
        features: pixels, encoder, or the local folder of one.
        seed: Of all draws.
        device: auto, cpu, cuda or mps.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path = Path("comparison")
    solvers: tuple[str, ...] = ("euler", "heun", "dpm++2m", "fast", "ddpm")
    steps: tuple[int, ...] = (5, 10, 20, 50)
    guidance: tuple[float, ...] = (0.0,)
    count: int = 500
    features: str = "encoder"
    seed: int = 0
    device: str = "auto"

    def __call__(self) -> int:
        """Compare; returns the exit status."""
        if not self.runs:
            raise InputError("expected one run or more: rectiflow compare RUN [RUN …].")

        from rectiflow.cli.runs import data_of, model_of
        from rectiflow.evaluation.compare import compare
        from rectiflow.sampling.solvers import solver as solver_named
        from rectiflow.training.precision import resolve_device

        ways = []
        for solver, cost, weight in product(self.solvers, self.steps, self.guidance):
            steps = max(1, cost // max(1, solver_named(solver).evaluations))
            asked = {"solver": solver, "steps": steps, "guidance": weight, "count": self.count}
            way = EvaluateConfig.parse({**asked, "features": self.features, "seed": self.seed}, "rectiflow compare")
            if way not in ways:
                ways.append(way)
        data, device = data_of(self.runs[0]), str(resolve_device(self.device))
        models = {str(run): model_of(run, device) for run in self.runs}
        for name, pipeline in models.items():
            if tuple(pipeline.shape) != tuple(data.shape):
                raise InputError(f"{name} makes pictures of {pipeline.shape}; the first run's are {tuple(data.shape)}.")
        compare(models, data, ways, self.out, print)
        print(f"wrote {self.out / 'compare.md'}")
        return 0
