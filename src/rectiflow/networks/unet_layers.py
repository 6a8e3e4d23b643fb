"""Layers of convolutional networks, for B×C×H×W in channels-last memory format."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.networks.layers import attend
from rectiflow.networks.text import TextAttention, Words

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Normalise groups of 16 channels, or fewer and larger groups where 16 does not divide `channels`."""
    # On a CPU in channels-last format a norm of 32 small groups takes three times as long.
    return nn.GroupNorm(math.gcd(channels, max(channels // 16, 1)), channels, affine=affine)


def zeroed(layer: Layer) -> Layer:
    """The same layer with weights and biases of zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class PixelAttention(nn.Module):
    """x + attention over all pixels of the normalised x, whose output starts at zero.

    Args:
        channels: C.
        heads: number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W to the same."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # a view if channels-last
        qkv = self.qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads)
        attended = attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        out = self.out(attended.transpose(1, 2).reshape(batch, height, width, channels))
        return x + out.permute(0, 3, 1, 2)


class PixelTextAttention(nn.Module):
    """x + attention of all pixels to the tokens of a caption; see `TextAttention`.

    Args:
        channels: C.
        features: of a token of the caption.
        heads: number of heads.
    """

    def __init__(self, channels: int, features: int, heads: int) -> None:
        super().__init__()
        self.attention = TextAttention(channels, features, heads)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """B×C×H×W to the same."""
        tokens = self.attention(x.permute(0, 2, 3, 1).flatten(1, 2), words)
        return tokens.reshape(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), and then attention (Ho et al. 2020; Dhariwal & Nichol 2021).

    The condition gives scale and shift after the second norm. The last convolution starts at zero.

    Args:
        channels: C of the input and of the output; where they differ, x passes a 1×1 convolution.
        features: D of the condition.
        heads: heads of the attention; 0 is no attention.
        dropout: share of activations dropped before the last convolution, in [0, 1); 0 is none.
    """

    def __init__(self, channels: tuple[int, int], features: int, heads: int, dropout: float) -> None:
        super().__init__()
        before, after = channels
        self.norm_in = group_norm(before)
        self.conv_in = nn.Conv2d(before, after, 3, padding=1)
        self.norm_out = group_norm(after, affine=False)  # the modulation scales and shifts
        self.modulation = nn.Linear(features, 2 * after)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attention = PixelAttention(after, heads) if heads else nn.Identity()
        self.text: PixelTextAttention | None = None  # set where a network is told captions

    def forward(self, x: Tensor, c: Tensor, words: Words | None = None) -> Tensor:
        """x B×C×H×W and c B×D (or 1×D) to B×C′×H×W."""
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        scale, shift = self.modulation(c).to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, h, 1 + scale))
        out: Tensor = self.attention(self.skip(x) + self.conv_out(self.dropout(h)))
        if self.text is not None:
            assert words is not None
            out = self.text(out, words)
        return out
