"""What transformers over patches share: patches of pictures and clips and back, and modulation by the condition."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.networks.layers import Grid, normalise


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise by the root mean square, then scale and shift per sample; x is B×tokens×D, the others B×1×D."""
    return torch.addcmul(shift, normalise(x), 1 + scale)


class Bias(nn.Module):
    """Adds a learned vector that starts at zero.

    Args:
        width: its length.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """…×width to the same."""
        return x + self.bias


def zero_map(width: int, parts: int) -> nn.Linear:
    """A map from D to `parts`·D whose output starts at zero: each block starts as the identity."""
    layer = nn.Linear(width, parts * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def patch_grid(x_t: Tensor, channels: int, patch: int) -> Grid:
    """The patches of x_t, B×C×H×W or B×C×T×H×W.

    Raises:
        InputError: the patch does not divide H and W, or C is not `channels`.
    """
    frames = x_t.shape[2] if x_t.dim() == 5 else 1
    found, height, width = x_t.shape[1], *x_t.shape[-2:]
    if found != channels:
        raise InputError(f"this network takes {channels} channels, received {found}.")
    if height % patch or width % patch or x_t[0].numel() == 0:
        near = f"{max(round(height / patch), 1) * patch}×{max(round(width / patch), 1) * patch}"
        raise InputError(f"the patch of {patch} does not divide {height}×{width}; the nearest size is {near}.")
    return Grid(frames, height // patch, width // patch)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """B×C×H×W or B×C×T×H×W to B×tokens×(C·patch²), frame by frame and row by row."""
    height, width = x.shape[-2:]
    x = x.reshape(*x.shape[:2], -1, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def to_image(x: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """The inverse of `to_patches`, for what had the shape B×C×H×W or B×C×T×H×W."""
    height, width = shape[-2] // patch, shape[-1] // patch
    x = x.reshape(len(x), -1, height, width, x.shape[-1] // patch**2, patch, patch)
    return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(shape)


class PictureIn(nn.Module):
    """Adds to the tokens of x_t those of a picture given as condition: as if both were joined channel by channel.

    Of a clip some frames are given, and the rest of the picture says nothing.

    Args:
        channels: of the picture; one channel more says where it says something.
        patch: side of a patch.
        width: D.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.map = nn.Linear(patch**2 * (channels + 1), width, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, x: Tensor, condition: Condition | None) -> Tensor:
        """B×tokens×D to the same.

        Raises:
            InputError: the picture has other channels, or another size.
        """
        if condition is None or condition.image is None:
            return x
        if condition.image.shape[1] != self.channels + 1:
            found = condition.image.shape[1] - 1
            raise InputError(f"this network is given a picture of {self.channels} channels, received {found}.")
        patches = to_patches(condition.image, self.patch)
        if patches.shape[1] != x.shape[1]:
            raise InputError(f"what is given has {patches.shape[1]} patches, expected {x.shape[1]} as in what is made.")
        return x + self.map(patches)
