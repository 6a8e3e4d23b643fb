"""The diffusion transformer."""

from typing import final

import torch
from torch import Tensor, nn

from rectiflow.networks.config import DiTConfig, TransformerConfig
from rectiflow.networks.layers import Attention, Grid, SwiGLU
from rectiflow.networks.patches import Bias, modulate, zero_map
from rectiflow.networks.reach import Reach, attention
from rectiflow.networks.text import TextAttention, Words
from rectiflow.networks.transformer import Rotation, Transformer, picture_rotation


class Block(nn.Module):
    """Attention and a feed-forward map, each modulated by the condition and gated, with gates that start at zero.

    Args:
        config: the transformer's settings.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = SwiGLU(config.width)
        self.modulation = Bias(6 * config.width) if config.modulation == "shared" else zero_map(config.width, 6)
        self.text = TextAttention(config.width, config.width, config.heads) if config.texts else None

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotation: Rotation,
        words: Words | None = None,
        reach: Reach | None = None,
    ) -> Tensor:
        """B×tokens×D to the same; `modulation` is B×D, or B×6D if all blocks share one map."""
        six = self.modulation(modulation).to(x.dtype)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six
        attended = attention(self.attention.project(modulate(x, shift_1, scale_1), rotation), reach)
        x = torch.addcmul(x, gate_1, self.attention.merge(attended))
        if self.text is not None:
            assert words is not None
            x = self.text(x, words)
        return torch.addcmul(x, gate_2, self.feed_forward(modulate(x, shift_2, scale_2)))


@final
class DiT(Transformer):
    """One stream of patches; each block attends to the captions, if there are any, beside.

    Args:
        config: its settings.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config, parts=6)

    def block(self, number: int) -> Block:
        """All are alike."""
        return Block(self.config)

    def rotation(self, grid: Grid, features: int, device: torch.device) -> Rotation:
        """By row and column."""
        return picture_rotation(grid, features, device)

    def march(self, x: Tensor, modulation: Tensor, rotation: Rotation, words: Words | None, grid: Grid) -> Tensor:
        """B×tokens×D through all blocks, to the same."""
        for block in self.blocks:
            x = block(x, modulation, rotation, words)
        return x
