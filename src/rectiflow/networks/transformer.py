"""What all transformers over patches do around their blocks."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.networks.config import TransformerConfig, resolved
from rectiflow.networks.layers import ConditionEmbedding, Grid, axial_rotation, grid_embedding
from rectiflow.networks.patches import PictureIn, modulate, patch_grid, to_image, to_patches, zero_map
from rectiflow.networks.text import TextEmbedding, Words

Rotation = tuple[Tensor, Tensor]


class Transformer(nn.Module, ABC):
    """Patches → blocks modulated by (t, label, caption) → patches (Peebles & Xie 2023, adaLN-zero).

    Accepts any height and width that the patch divides, whatever it was trained on.

    Args:
        config: its settings.
        parts: shifts, scales and gates of a block, if one map gives those of all blocks.
    """

    def __init__(self, config: TransformerConfig, parts: int) -> None:
        super().__init__()
        self.config = config
        inputs = resolved(config)
        self.channels, width, pixels = inputs.channels, config.width, config.patch**2 * inputs.channels
        self.patch_in = nn.Linear(pixels, width)
        self.picture_in = PictureIn(inputs.picture, config.patch, width) if inputs.picture else None
        self.embedding = ConditionEmbedding(inputs.classes, width, config.label_std)
        self.words = TextEmbedding(inputs.texts, width) if inputs.texts else None
        self.shared = zero_map(width, parts) if config.modulation == "shared" else nn.Identity()
        self.blocks = nn.ModuleList(self.block(number) for number in range(config.depth))
        self.final = zero_map(width, 2)
        self.patch_out = nn.Linear(width, pixels)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    @abstractmethod
    def block(self, number: int) -> nn.Module:
        """A new block; `number` counts from 0."""

    @abstractmethod
    def rotation(self, grid: Grid, features: int, device: torch.device) -> Rotation:
        """Tables that turn the queries and keys of a head by their place, each tokens×features.

        Raises:
            InputError: it has no place for so many frames.
        """

    @abstractmethod
    def march(self, x: Tensor, modulation: Tensor, rotation: Rotation, words: Words | None, grid: Grid) -> Tensor:
        """B×tokens×D through all blocks, to the same.

        Args:
            x: B×tokens×D.
            modulation: what the blocks are told of the condition: B×D, or B×(parts·D) if one map serves all.
            rotation: of the tokens.
            words: of the captions; None if it takes none.
            grid: how the tokens lie.
        """

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t B×C×H×W, or B×C×T×H×W, and t B (float32) to the shape of x_t.

        Raises:
            InputError: the patch does not divide H and W; the channels or encoders differ; or T > 1 for pictures alone.
        """
        config, grid = self.config, patch_grid(x_t, self.channels, self.config.patch)
        c, words = self.embedding(t, condition), None
        if self.words is not None:
            words = self.words(condition, len(x_t))
            c = c + words.pooled
        c = F.silu(c)
        rotation = self.rotation(grid, config.width // config.heads, x_t.device)
        x = self.patch_in(to_patches(x_t, config.patch))
        if self.picture_in is not None:
            x = self.picture_in(x, condition)
        x = x + grid_embedding(grid, config.width, x_t.device).to(x.dtype)
        x = self.march(x, self.shared(c), rotation, words, grid)
        shift, scale = self.final(c).to(x.dtype)[:, None].chunk(2, dim=-1)
        return to_image(self.patch_out(modulate(x, shift, scale)), x_t.shape, config.patch)


def picture_rotation(grid: Grid, features: int, device: torch.device) -> Rotation:
    """Rotation by row and column, of pictures.

    Raises:
        InputError: there are several frames.
    """
    if grid.frames > 1:
        raise InputError(
            f"this network takes pictures, received clips of {grid.frames} frames; use network.kind=video."
        )
    return axial_rotation(grid, features, device)
