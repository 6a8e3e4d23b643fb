"""`rectiflow evaluate`: a report on a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.cli.together import together
from rectiflow.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from rectiflow.data.images import ImageSet

_OF_FLOWS = ("steps", "solver", "guidance", "likelihood")


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's model: scores of its pictures, copies, overfitting, and likelihood if asked for. Of an
    autoencoder, measure its reconstructions of held-out pictures. Under torchrun each process makes a part of the
    pictures, and the first one judges them.

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
        likelihood: Bits per dimension of held-out pictures too, beside a mixture of Gaussians; of models of pixels.
        adherence: What of held-out prompts is in the pictures or clips, of a model of digit-scenes or digit-clips.
        weights: w ≥ 0 at which adherence is measured.
        device: auto, cpu, cuda or mps.
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
    adherence: bool = False
    weights: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    device: str = "auto"

    def __call__(self) -> int:
        """Measure; returns the exit status."""
        with together(self) as first:
            lines = self._measure()
            if first:
                print("\n".join(lines))
        return 0

    def _measure(self) -> list[str]:
        names = EvaluateConfig.model_fields
        config = EvaluateConfig.parse({name: getattr(self, name) for name in names}, "rectiflow evaluate")

        from rectiflow.cli.runs import data_of
        from rectiflow.models.autoencoder import is_autoencoder
        from rectiflow.models.folder import find_model

        data, model = data_of(self.run), find_model(self.run)
        out = self.out or self.run / "evaluation"
        lines = self._autoencoder(model, data, config, out) if is_autoencoder(model) else self._flow(data, config, out)
        return [*lines, f"wrote {out / 'report.md'}"]

    def _flow(self, data: "ImageSet", config: EvaluateConfig, out: Path) -> list[str]:
        from rectiflow.cli.runs import model_of
        from rectiflow.evaluation.page import adherence_lines, cell, restoration_lines
        from rectiflow.evaluation.report import evaluate
        from rectiflow.models.folder import describe, find_model
        from rectiflow.training.precision import resolve_device

        pipeline = model_of(self.run, str(resolve_device(self.device)))
        result = evaluate(pipeline, data, config, out, describe(find_model(self.run)))
        if not result:  # another process has it
            return []
        found, real = result["scores"], result["real"]
        bits = [
            f"{name}: {bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f} bits per dimension"
            for name, bits in result.get("likelihood", {}).items()
            if isinstance(bits, dict)
        ]
        return [
            f"Fréchet distance {cell(found['frechet'])}, of real pictures {cell(real['frechet'])}",
            f"told apart {cell(found['told_apart'])}, copies {result['copies']['share']:.1%}",
            *bits,
            *adherence_lines(result.get("adherence")),
            *restoration_lines(result.get("restoration")),
        ]

    def _autoencoder(self, model: Path, data: "ImageSet", config: EvaluateConfig, out: Path) -> list[str]:
        from rectiflow.evaluation.autoencoder import evaluate_autoencoder
        from rectiflow.models.autoencoder import describe_autoencoder, load_autoencoder
        from rectiflow.training.precision import resolve_device

        plain = Evaluate(self.run)
        asked = next((name for name in _OF_FLOWS if getattr(self, name) != getattr(plain, name)), "")
        if asked:
            recipe = "video" if len(data.shape) == 4 else "latent"
            raise InputError(
                f"{self.run} is an autoencoder, which is measured by its reconstructions; leave out --{asked}, or "
                f"train a flow in it: rectiflow train {recipe} --autoencoder {self.run} --data DIR"
            )
        space = load_autoencoder(str(model))
        space.network.to(resolve_device(self.device))
        result = evaluate_autoencoder(space, data, config, out, describe_autoencoder(model))
        if not result:
            return []
        found = result["reconstruction"]
        quality = "exact" if found["psnr"] is None else f"{found['psnr']:.2f} dB"
        distances = result.get("frechet")
        return [
            f"PSNR {quality}, SSIM {found['ssim']:.3f}, spectrum error {found['spectrum_error']:.3f} "
            f"(sharpness {found['sharpness']:+.3f}), gradient correlation {found['gradient_correlation']:.3f}",
            *([f"Fréchet distance of reconstructions {distances['reconstructions']:.4g}"] if distances else []),
        ]
