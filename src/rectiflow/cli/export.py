"""`rectiflow export`: a model in half the size, or an autoencoder in diffusers' layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rectiflow.base.errors import InputError


@dataclass(frozen=True)
class Export:
    """Write a model elsewhere: an autoencoder, or the one inside of a latent model, as the AutoencoderKL folder that
    diffusers loads; or with --dtype the whole model in 16 bits, as a model folder like every other.

    Args:
        model: A run or model folder, of an autoencoder or of a model with a flow.
        out: The folder to write, which is not there yet or is empty.
        dtype: float16 or bfloat16: the numbers that the model folder keeps; left out, the autoencoder is exported.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path
    dtype: Literal["float16", "bfloat16"] | None = None

    def __call__(self) -> int:
        """Export; returns the exit status."""
        from rectiflow.autoencoders.foreign import write_foreign
        from rectiflow.models.autoencoder import load_autoencoder

        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise InputError(f"{self.out} is there already; choose another --out, or take it away first.")
        if self.dtype is not None:
            return self._halve(self.dtype)
        write_foreign(load_autoencoder(str(self.model)), self.out)
        print(f"wrote {self.out}: diffusers.AutoencoderKL.from_pretrained('{self.out}')")
        return 0

    def _halve(self, dtype: str) -> int:
        import torch

        from rectiflow.cli.hint import sample_command
        from rectiflow.pipeline import Pipeline

        pipeline = Pipeline.load(self.model)
        largest = max(float(weight.abs().max()) for weight in pipeline.flow.parameters())
        if largest > torch.finfo(getattr(torch, dtype)).max:
            raise InputError(f"a weight of {largest:g} does not fit into {dtype}; use --dtype bfloat16.")
        pipeline.save(self.out, getattr(torch, dtype))
        print(f"wrote {self.out} in {dtype}: {sample_command(self.out, self.model)}")
        return 0
