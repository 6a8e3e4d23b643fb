"""Frames of clips as the pictures of a longer batch, for whatever knows pictures alone."""

from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """Clips B×C×T×H×W to pictures (B·T)×C×H×W, the channels last in memory; pictures as they are."""
    if x.dim() == 4:
        return x
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def unfold(pictures: Tensor, batch: int) -> Tensor:
    """The clips B×C×T×H×W of which `pictures`, (B·T)×C×H×W, are the frames; a view."""
    return pictures.unflatten(0, (batch, -1)).transpose(1, 2)


def like(pictures: Tensor, x: Tensor) -> Tensor:
    """What was made of the folded frames of x, folded or not as x is."""
    return pictures if x.dim() == 4 else unfold(pictures, len(x))
