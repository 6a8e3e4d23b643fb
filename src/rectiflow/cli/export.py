"""`rectiflow export`: a model in half the size or of another checkpoint, or an autoencoder in diffusers' layout."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rectiflow.base.errors import InputError


@dataclass(frozen=True)
class Export:
    """Write a model elsewhere: an autoencoder, or the one inside of a latent model, as the AutoencoderKL folder that
    diffusers loads; or the whole model as a model folder like every other: with --dtype in 16 bits, with --step as it
    was at a checkpoint of its run.

    Args:
        model: A run or model folder, of an autoencoder or of a model with a flow.
        out: The folder to write, which is not there yet or is empty.
        dtype: float16 or bfloat16: the numbers that the model folder keeps. Without it and --step the autoencoder is
            exported.
        step: Of a checkpoint that the run keeps (keep, keep_best); best is that of the least held-out loss.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path
    dtype: Literal["float16", "bfloat16"] | None = None
    step: int | Literal["best"] | None = None

    def __call__(self) -> int:
        """Export; returns the exit status."""
        from rectiflow.autoencoders.foreign import write_foreign
        from rectiflow.models.autoencoder import load_autoencoder

        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise InputError(f"{self.out} is there already; choose another --out, or take it away first.")
        if self.dtype is not None or self.step is not None:
            return self._whole()
        write_foreign(load_autoencoder(str(self.model)), self.out)
        print(f"wrote {self.out}: diffusers.AutoencoderKL.from_pretrained('{self.out}')")
        return 0

    def _whole(self) -> int:
        import torch

        from rectiflow.cli.hint import sample_command
        from rectiflow.pipeline import Pipeline
        from rectiflow.training.weights_at import weights_at

        pipeline, told, dtype = Pipeline.load(self.model), "", None
        if self.step is not None:
            weights, step = weights_at(self.model, self.step, pipeline.flow.state_dict())
            pipeline.flow.load_state_dict(weights)
            pipeline = replace(pipeline, training={**pipeline.training, "step": step})
            told = f" of step {step}"
        if self.dtype is not None:
            dtype = getattr(torch, self.dtype)
            largest = max(float(weight.abs().max()) for weight in pipeline.flow.parameters())
            if largest > torch.finfo(dtype).max:
                raise InputError(f"a weight of {largest:g} does not fit into {self.dtype}; use --dtype bfloat16.")
            told += f" in {self.dtype}"
        pipeline.save(self.out, dtype)
        print(f"wrote {self.out}{told}: {sample_command(self.out, self.model)}")
        return 0
