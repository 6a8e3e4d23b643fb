"""The transformer over patches of space and time."""

from typing import final

import torch
from torch import Tensor

from rectiflow.networks.config import VideoDiTConfig
from rectiflow.networks.dit import Block
from rectiflow.networks.layers import Grid, space_time_rotation
from rectiflow.networks.mmdit import JointBlock
from rectiflow.networks.reach import Reach
from rectiflow.networks.text import Words
from rectiflow.networks.transformer import Rotation, Transformer


@final
class VideoDiT(Transformer):
    """A stream of a clip's patches, and one of a caption's tokens if it takes captions; a picture is a clip of T = 1.

    Accepts any number of frames, whatever it was trained on. Attention is full or factorised by `config.attention`,
    with the same weights.

    Args:
        config: its settings.
    """

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__(config, parts=12 if config.texts else 6)
        self.factorised = config.attention == "factorised"

    def block(self, number: int) -> Block | JointBlock:
        """Of two streams where there are captions."""
        config = self.config
        return JointBlock(config, number == config.depth - 1) if config.texts else Block(config)

    def rotation(self, grid: Grid, features: int, device: torch.device) -> Rotation:
        """By time, row and column."""
        return space_time_rotation(grid, features, device)

    def march(self, x: Tensor, modulation: Tensor, rotation: Rotation, words: Words | None, grid: Grid) -> Tensor:
        """B×tokens×D through all blocks, to the same."""
        # One group is none at all: compiled blocks are then the same for every length.
        turns = [Reach(grid, "frame"), Reach(grid, "place")] if self.factorised else [Reach(grid)]
        ways = [way if way.groups > 1 else None for way in turns]
        y = None if words is None else words.tokens.to(x.dtype)
        for number, block in enumerate(self.blocks):
            reach = ways[number % len(ways)]
            if words is None:
                x = block(x, modulation, rotation, None, reach)
            else:
                x, y = block(x, y, modulation, rotation, words.mask, reach)
        return x
