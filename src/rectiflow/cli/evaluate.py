"""`rectiflow evaluate`: a report on a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rectiflow.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's model: scores of its pictures, copies, overfitting, and likelihood if asked for.

    Args:
        run: A run folder: its data are the reference.
        out: Folder of the report; RUN/evaluation if left out.
        count: Samples drawn, and held-out pictures they are compared with, if there are as many.
        features: pixels, encoder (trained on the training pictures in seconds), or the local folder of an encoder that
            transformers loads, such as DINOv2 or CLIP; nothing is downloaded.
        steps: Intervals of the solver.
        solver: As for rectiflow sample.
        guidance: w ≥ 0; 0 is none. Others' guidance scale is 1+w.
        seed: Of the samples, the encoder and the resampling.
        likelihood: Bits per dimension of held-out pictures too, beside a mixture of Gaussians.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path | None = None
    count: int = 1000
    features: str = "encoder"
    steps: int = 50
    solver: str = "euler"
    guidance: float = 0.0
    seed: int = 0
    likelihood: bool = False

    def __call__(self) -> int:
        """Measure; returns the exit status."""
        names = EvaluateConfig.model_fields
        config = EvaluateConfig.parse({name: getattr(self, name) for name in names}, "rectiflow evaluate")

        from rectiflow.cli.runs import data_of, model_of
        from rectiflow.evaluation.page import cell
        from rectiflow.evaluation.report import evaluate
        from rectiflow.model_folder import describe, find_model

        data, pipeline = data_of(self.run), model_of(self.run)
        out = self.out or self.run / "evaluation"
        result = evaluate(pipeline, data, config, out, describe(find_model(self.run)))
        found, real = result["scores"], result["real"]
        print(f"Fréchet distance {cell(found['frechet'])}, of real pictures {cell(real['frechet'])}")
        print(f"told apart {cell(found['told_apart'])}, copies {result['copies']['share']:.1%}")
        for name, bits in result.get("likelihood", {}).items():
            if isinstance(bits, dict):
                print(f"{name}: {bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f} bits per dimension")
        print(f"wrote {out / 'report.md'}")
        return 0
