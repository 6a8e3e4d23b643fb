"""The U-Net."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.networks.config import UNetConfig, resolved
from rectiflow.networks.layers import ConditionEmbedding
from rectiflow.networks.text import TextEmbedding
from rectiflow.networks.unet_layers import PixelTextAttention, ResidualBlock, group_norm, zeroed


class UNet(nn.Module):
    """Convolutions over ever smaller pictures and back, each level's states handed across (Ronneberger et al. 2015).

    Level i works at H/2^i × W/2^i. Each block on the way up takes, beside its input, the output of a block on the way
    down. The size is halved by a 2×2 convolution with stride 2, and doubled by a 1×1 convolution, which is cheap where
    it stands, and repetition. Accepts any height and width that 2^(levels−1) divides, whatever it was trained on.

    Args:
        config: its settings.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        inputs = resolved(config)
        self.channels = inputs.channels
        widths = [config.width * multiplier for multiplier in config.multipliers]
        features = 4 * config.width

        def block(before: int, level: int, attention: bool) -> ResidualBlock:
            made = ResidualBlock((before, widths[level]), features, config.heads if attention else 0, config.dropout)
            if attention and inputs.texts:
                made.text = PixelTextAttention(widths[level], features, config.heads)
            return made

        levels = [level for level in range(len(widths)) for _ in range(config.blocks)]
        down = [block(widths[level], level, 2**level in config.attention) for level in levels]
        middle = [block(widths[-1], -1, config.middle_attention), block(widths[-1], -1, False)]
        up = [block(2 * widths[level], level, 2**level in config.attention) for level in reversed(levels)]
        self.embedding = ConditionEmbedding(inputs.classes, features, config.label_std)
        self.words = TextEmbedding(inputs.texts, features) if inputs.texts else None
        self.conv_in = nn.Conv2d(self.channels, widths[0], 3, padding=1)
        # From zero, a picture given as condition is learned to be used.
        self.picture_in = (
            zeroed(nn.Conv2d(inputs.picture + 1, widths[0], 3, padding=1, bias=False)) if inputs.picture else None
        )
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in pairwise(reversed(widths)))
        self.norm_out = group_norm(widths[0])
        # Not zeroed, as it often is: from zero the first fifty steps reach a loss of 0.90 where these reach 0.25.
        self.conv_out = nn.Conv2d(widths[0], self.channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t B×C×H×W and t B (float32) to B×C×H×W.

        Raises:
            InputError: 2^(levels−1) does not divide H and W, or the channels or encoders differ.
        """
        self._check(x_t)
        c, words = self.embedding(t, condition), None
        if self.words is not None:
            words = self.words(condition, len(x_t))
            c = c + words.pooled
        c = F.silu(c)
        x = self.conv_in(x_t.contiguous(memory_format=torch.channels_last))
        if self.picture_in is not None and condition is not None and condition.image is not None:
            x = x + self.picture_in(condition.image)
        across = []
        for index, block in enumerate(self.down):
            level, place = divmod(index, self.config.blocks)
            if level and place == 0:
                x = self.shrink[level - 1](x)
            x = block(x, c, words)
            across.append(x)
        for block in self.middle:
            x = block(x, c, words)
        for index, block in enumerate(self.up):  # from the coarsest level to the finest
            level, place = divmod(index, self.config.blocks)
            if level and place == 0:
                x = F.interpolate(self.grow[level - 1](x), scale_factor=2.0)
            x = block(torch.cat([x, across.pop()], dim=1), c, words)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks, in the order in which they work."""
        return [*self.down, *self.middle, *self.up]

    def _check(self, x_t: Tensor) -> None:
        _, channels, height, width = x_t.shape
        part = 2 ** (len(self.config.multipliers) - 1)
        if channels != self.channels:
            raise InputError(f"this network takes {self.channels} channels, received {channels}.")
        if height % part or width % part or height * width == 0:
            near = f"{max(round(height / part), 1) * part}×{max(round(width / part), 1) * part}"
            raise InputError(
                f"{part}, by which {len(self.config.multipliers)} levels shrink a picture, does not divide "
                f"{height}×{width}; the nearest size is {near}."
            )
