"""Frames of clips as the pictures of a longer batch, for whatever knows pictures alone."""

import torch
from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """Clips B×C×T×H×W to pictures (B·T)×C×H×W, the channels last in memory; pictures as they are."""
    if x.dim() == 4:
        return x
    pictures = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
    return pictures.contiguous(memory_format=torch.channels_last)


def unfold(pictures: Tensor, batch: int) -> Tensor:
    """The clips B×C×T×H×W of which `pictures`, (B·T)×C×H×W, are the frames; a view. T may be 0."""
    return pictures.unflatten(0, (batch, len(pictures) // batch)).transpose(1, 2)


def like(pictures: Tensor, x: Tensor) -> Tensor:
    """What was made of the folded frames of x, folded or not as x is."""
    return pictures if x.dim() == 4 else unfold(pictures, len(x))


def grouped(x: Tensor, size: int) -> Tensor:
    """Clips B×C×(size·k)×H×W to pictures (B·k)×(size·C)×H×W, of so many frames each; k may be 0."""
    groups = x.unflatten(2, (x.shape[2] // size, size)).permute(0, 2, 3, 1, 4, 5)  # B×k×size×C×H×W
    return groups.flatten(2, 3).flatten(0, 1)


def ungrouped(pictures: Tensor, size: int, batch: int) -> Tensor:
    """The clips B×C×(size·k)×H×W of which these are the groups."""
    groups = pictures.unflatten(1, (size, pictures.shape[1] // size)).unflatten(0, (batch, len(pictures) // batch))
    return groups.permute(0, 3, 1, 2, 4, 5).flatten(2, 3)
