"""The transformer of two streams, a picture's and a caption's."""

from typing import final

import torch
from torch import Tensor, nn

from rectiflow.networks.config import MMDiTConfig, TransformerConfig
from rectiflow.networks.layers import Attention, Grid, SwiGLU
from rectiflow.networks.patches import Bias, modulate, zero_map
from rectiflow.networks.reach import Reach, joint_attention
from rectiflow.networks.text import Words
from rectiflow.networks.transformer import Rotation, Transformer, picture_rotation


class Stream(nn.Module):
    """What a block has for one kind of tokens: their projections, their feed-forward map and their modulation.

    Args:
        config: the transformer's settings.
        last: whether nothing comes after, so that these tokens are attended to and not changed.
    """

    def __init__(self, config: TransformerConfig, last: bool) -> None:
        super().__init__()
        self.parts = parts = 2 if last else 6
        self.attention = Attention(config.width, config.heads)
        if last:
            self.attention.out = nn.Identity()  # type: ignore[assignment]
        self.feed_forward = nn.Identity() if last else SwiGLU(config.width)
        shared = config.modulation == "shared"
        self.modulation = Bias(parts * config.width) if shared else zero_map(config.width, parts)

    def modulations(self, modulation: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Shift and scale, and unless this is the last: gate, shift, scale and gate; B×1×D each."""
        if isinstance(self.modulation, Bias):
            modulation = modulation[..., : self.modulation.bias.shape[0]]
        return self.modulation(modulation).to(dtype)[:, None].chunk(self.parts, dim=-1)


class JointBlock(nn.Module):
    """Attention over both kinds of tokens together, and a feed-forward map for each; gates start at zero.

    Args:
        config: the transformer's settings.
        last: whether the caption's tokens are not needed any more.
    """

    def __init__(self, config: TransformerConfig, last: bool) -> None:
        super().__init__()
        self.picture, self.text = Stream(config, last=False), Stream(config, last)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        modulation: Tensor,
        rotation: Rotation,
        mask: Tensor,
        reach: Reach | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x B×tokens×D of the picture and y B×L×D of the caption to the same.

        Args:
            x: B×tokens×D.
            y: B×L×D.
            modulation: B×D, or B×12D if all blocks share one map, the picture's six first.
            rotation: of the picture's tokens; the caption's know their places already.
            mask: bool B×L, true where the caption has a token.
            reach: what the picture's tokens attend to among themselves; None is all of them.
        """
        first, second = modulation, modulation
        if modulation.shape[-1] != x.shape[-1]:
            first, second = modulation.chunk(2, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.picture.modulations(first, x.dtype)
        told = self.text.modulations(second, y.dtype)
        of_x = self.picture.attention.project(modulate(x, shift_1, scale_1), rotation)
        of_y = self.text.attention.project(modulate(y, told[0], told[1]), None)
        if len(told) == 2:
            of_y = (of_y[0][..., :0, :], *of_y[1:])  # nothing is asked for the caption any more
        drawn, heard = joint_attention(of_x, of_y, mask, reach)
        x = torch.addcmul(x, gate_1, self.picture.attention.merge(drawn))
        x = torch.addcmul(x, gate_2, self.picture.feed_forward(modulate(x, shift_2, scale_2)))
        if len(told) == 6:
            y = torch.addcmul(y, told[2], self.text.attention.merge(heard))
            y = torch.addcmul(y, told[5], self.text.feed_forward(modulate(y, told[3], told[4])))
        return x, y


@final
class MMDiT(Transformer):
    """A stream of patches and one of a caption's tokens (Esser et al. 2024); captions may have any length.

    Args:
        config: its settings.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config, parts=12)

    def block(self, number: int) -> JointBlock:
        """The last needs the caption's tokens no more when it is done."""
        return JointBlock(self.config, number == self.config.depth - 1)

    def rotation(self, grid: Grid, features: int, device: torch.device) -> Rotation:
        """By row and column."""
        return picture_rotation(grid, features, device)

    def march(self, x: Tensor, modulation: Tensor, rotation: Rotation, words: Words | None, grid: Grid) -> Tensor:
        """B×tokens×D through all blocks, to the same."""
        assert words is not None
        y = words.tokens.to(x.dtype)
        for block in self.blocks:
            x, y = block(x, y, modulation, rotation, words.mask)
        return x
