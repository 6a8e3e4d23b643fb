"""Discriminators of patches: a logit for each overlapping piece of a picture or clip (PatchGAN, Isola et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.errors import InputError

_SLOPE = 0.2
_WIDEST = 8
_GROUPS = 8


class PatchBlock(nn.Module):
    """leaky_relu(norm(conv(x))) with a kernel of 4×4.

    Args:
        before: channels of the input.
        after: channels of the output; eight groups, or as many as divide them, are normalised.
        stride: 2 halves the picture, 1 takes one pixel off each side.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 4, stride, padding=1)
        self.norm = _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W to B×C′×H/2×W/2, or to B×C′×(H−1)×(W−1)."""
        return F.leaky_relu(self.norm(self.conv(x)), _SLOPE)


class Discriminator(nn.Module):
    """Logits for patches: positive says real.

    Levels of stride 2 double the channels up to eight times the width; two convolutions of stride 1 follow. A logit
    sees 9·2^layers − 2 pixels on each side: 16, 34, 70, 142 for one to four layers. Norms are of groups within a sample
    (the paper's are over the batch), so a sample's logits are its own; through them a logit also sees the statistics of
    its whole picture.

    Args:
        channels: C of the pictures.
        width: channels after the first convolution.
        layers: levels of stride 2, at least 1.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.layers, widths, strides = layers, *_plan(channels, width, layers)
        self.conv_in = nn.Conv2d(channels, width, 4, 2, padding=1)
        self.middle = nn.ModuleList(
            PatchBlock(before, after, stride)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, padding=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, for what is applied from outside."""
        return list(self.middle)

    @property
    def least_side(self) -> int:
        """The smallest side of a picture that still gives a logit: 3·2^layers."""
        return _least_side(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits B×1×h×w of pictures B×C×H×W in [−1, 1]; h = ⌊H / 2^layers⌋ − 2.

        Raises:
            InputError: a side is under 3·2^layers.
        """
        _check_side(x, self.layers)
        h = F.leaky_relu(self.conv_in(x.contiguous(memory_format=torch.channels_last)), _SLOPE)
        for block in self.middle:
            h = block(h)
        out: Tensor = self.conv_out(h)
        return out


class ClipBlock(nn.Module):
    """leaky_relu(norm(conv(x))) with a kernel of 3×4×4.

    Args:
        before: channels of the input.
        after: channels of the output, normalised as by `PatchBlock`.
        stride: 2 halves frames and sides; 1 leaves the frames and takes one pixel off each side.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, (3, 4, 4), stride, padding=1)
        self.norm = _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×T×H×W to B×C′×⌈T/2⌉×H/2×W/2, or to B×C′×T×(H−1)×(W−1)."""
        return F.leaky_relu(self.norm(self.conv(x)), _SLOPE)


class VideoDiscriminator(nn.Module):
    """Logits for patches of clips: `Discriminator` with kernels of 3×4×4, which halve time as they halve the sides.

    A logit sees 6·2^layers − 1 frames, and of each what one of `Discriminator` sees. Beyond the ends are zeros, so that
    a clip may have any number of frames, one too.

    Args:
        channels: C of the clips.
        width: channels after the first convolution.
        layers: levels of stride 2, at least 1.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.layers, widths, strides = layers, *_plan(channels, width, layers)
        self.conv_in = nn.Conv3d(channels, width, (3, 4, 4), 2, padding=1)
        self.middle = nn.ModuleList(
            ClipBlock(before, after, stride)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.conv_out = nn.Conv3d(widths[-1], 1, (3, 4, 4), padding=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, for what is applied from outside."""
        return list(self.middle)

    @property
    def least_side(self) -> int:
        """The smallest side of a frame that still gives a logit: 3·2^layers."""
        return _least_side(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits B×1×t×h×w of clips B×C×T×H×W in [−1, 1]; t = ⌈T / 2^layers⌉, h = ⌊H / 2^layers⌋ − 2.

        Raises:
            InputError: a side is under 3·2^layers.
        """
        _check_side(x, self.layers)
        h = F.leaky_relu(self.conv_in(x.contiguous(memory_format=torch.channels_last_3d)), _SLOPE)
        for block in self.middle:
            h = block(h)
        out: Tensor = self.conv_out(h)
        return out


def _plan(channels: int, width: int, layers: int) -> tuple[list[int], list[int]]:
    """Channels after each convolution but the last, and the strides of the blocks."""
    if min(channels, width, layers) < 1:
        raise InputError(
            f"expected channels, width and layers of at least 1, received {channels}, {width} and {layers}."
        )
    return [width * min(2**level, _WIDEST) for level in range(layers + 1)], [2] * (layers - 1) + [1]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(groups for groups in range(1, _GROUPS + 1) if channels % groups == 0), channels)


def _least_side(layers: int) -> int:
    return 3 * 2**layers


def _check_side(x: Tensor, layers: int) -> None:
    side = min(x.shape[-2:])
    if side < _least_side(layers):
        raise InputError(
            f"a discriminator of {layers} layers needs pictures of at least {_least_side(layers)} pixels a side, "
            f"received {side}; use layers={most_layers(side)} or larger pictures."
        )


def most_layers(side: int, most: int = 3) -> int:
    """The most layers, up to `most`, that pictures with this shorter side allow: 1 from 6 pixels, 2 from 12, 3 from 24.

    Raises:
        InputError: under 6 pixels.
    """
    if side < 6:
        raise InputError(
            f"a discriminator of patches needs pictures of at least 6 pixels a side, received {side}; "
            "set a larger data.size, or discriminator.weight=0."
        )
    return min(most, (side // 3).bit_length() - 1)
