"""`rectiflow export`: an autoencoder in diffusers' layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Export:
    """Write an autoencoder, or the one inside of a latent model, as the AutoencoderKL folder that diffusers loads.

    Args:
        autoencoder: A run or model folder, of an autoencoder or of a latent model.
        out: The folder to write.
    """

    autoencoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path

    def __call__(self) -> int:
        """Export; returns the exit status."""
        from rectiflow.autoencoders.foreign import write_foreign
        from rectiflow.models.autoencoder import load_autoencoder

        write_foreign(load_autoencoder(self.autoencoder), self.out)
        print(f"wrote {self.out}: diffusers.AutoencoderKL.from_pretrained('{self.out}')")
        return 0
