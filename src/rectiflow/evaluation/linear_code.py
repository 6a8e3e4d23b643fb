"""The best linear code of pictures, which an autoencoder of as many numbers has to beat."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.base.errors import InputError

_CHUNK = 16


@final
@dataclass(frozen=True)
class LinearCode:
    """Principal components of blocks of pictures: the linear code of least squared error for its size (Pearson 1901).

    Args:
        patch: p, side of a block.
        mean: d = C·p², of the blocks, float64.
        components: k×d, orthonormal rows, the strongest first, float64.
        eigenvalues: d, descending: the variance along every direction, those left out too. Their sum from the k-th on
            is the squared error of a block of the training pictures.
    """

    patch: int
    mean: Tensor
    components: Tensor
    eigenvalues: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Pictures B×C×H×W to latents B×k×H/p×W/p, in the precision of the pictures.

        Raises:
            InputError: the patch does not divide the sides, or other channels than it was fitted to.
        """
        blocks = _blocks(x, self.patch)
        if blocks.shape[1] != len(self.mean):
            raise InputError(f"this code is of {len(self.mean) // self.patch**2} channels, received {x.shape[1]}.")
        mean, components = self._of(x)
        return torch.einsum("kd,bdhw->bkhw", components, blocks - mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents B×k×h×w to pictures B×C×ph×pw, not clipped."""
        mean, components = self._of(latents)
        return F.pixel_shuffle(torch.einsum("kd,bkhw->bdhw", components, latents) + mean, self.patch)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What is left of pictures B×C×H×W, not clipped.

        Raises:
            InputError: as of `encode`.
        """
        return self.decode(self.encode(x))

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.to(x)[:, None, None], self.components.to(x)


def linear_code(train: Tensor, patch: int, count: int) -> LinearCode:
    """The code of `count` numbers for each block of patch×patch pixels, fitted to pictures B×C×H×W.

    The covariance is over N blocks, by 1/N, in float64.

    Raises:
        InputError: the patch does not divide the sides, or `count` is not of 1 … C·patch².
    """
    parts = torch.split(train, _CHUNK)
    width = train.shape[1] * patch**2
    if not 1 <= count <= width:
        raise InputError(f"blocks of {width} numbers have codes of 1 to {width}, received {count}.")
    blocks = sum(part.shape[0] * (part.shape[-2] // patch) * (part.shape[-1] // patch) for part in parts)
    mean, covariance = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for part in parts:
        mean += _rows(part, patch).sum(0) / blocks
    for part in parts:
        centred = _rows(part, patch) - mean
        covariance += centred.T @ centred / blocks
    values, vectors = torch.linalg.eigh(covariance)
    return LinearCode(patch, mean, vectors.flip(1)[:, :count].T.contiguous(), values.flip(0))


def _blocks(x: Tensor, patch: int) -> Tensor:
    if x.dim() != 4 or patch < 1 or x.shape[-2] % patch or x.shape[-1] % patch or 0 in x.shape:
        raise InputError(
            f"expected pictures B×C×H×W whose sides {patch} divides, received {tuple(x.shape)}; crop them or choose "
            "another patch."
        )
    return F.pixel_unshuffle(x, patch)  # B×(C·p²)×H/p×W/p


def _rows(x: Tensor, patch: int) -> Tensor:
    """Blocks as rows N×d, float64."""
    return _blocks(x, patch).double().cpu().permute(0, 2, 3, 1).flatten(0, 2)
