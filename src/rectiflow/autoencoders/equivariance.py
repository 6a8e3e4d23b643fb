"""Moves that latents and pictures should commute with: shrinking and quarter turns (EQ-VAE, Kouzelis et al. 2025)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.autoencoders.frames import fold, like

_LEAST = 0.25


@dataclass(frozen=True)
class Move:
    """Shrinking to a given number of latent rows and columns, then quarter turns.

    Args:
        height: rows of the latents afterwards, before turning.
        width: columns.
        turns: quarter turns, 0 … 3.
    """

    height: int
    width: int
    turns: int

    @classmethod
    def drawn(cls, uniform: Tensor, height: int, width: int, least: int = 1) -> "Move":
        """From two draws in (0, 1): the scale evenly in [¼, 1), for rows and columns alike, and the turns.

        Args:
            uniform: the two draws.
            height: rows of the latents as they are.
            width: columns.
            least: rows and columns that are left at least.
        """
        scale = _LEAST + (1 - _LEAST) * float(uniform[0])
        rows, columns = (max(min(least, side), round(scale * side)) for side in (height, width))
        return cls(rows, columns, int(float(uniform[1]) * 4))

    def __call__(self, x: Tensor, factor: int = 1) -> Tensor:
        """Latents B×C×h×w, or with their `factor` f pictures B×C×fh×fw, moved; all frames of clips alike."""
        size = (factor * self.height, factor * self.width)
        if size != tuple(x.shape[-2:]):
            x = like(F.interpolate(fold(x).float(), size, mode="bilinear", antialias=True), x)
        return torch.rot90(x, self.turns, (-2, -1)) if self.turns else x
