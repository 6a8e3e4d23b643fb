"""The diffusion transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.networks.config import DiTConfig, resolved
from rectiflow.networks.layers import Attention, ConditionEmbedding, SwiGLU, axial_rotation, grid_embedding
from rectiflow.networks.patches import Bias, PictureIn, modulate, patch_grid, to_image, to_patches, zero_map
from rectiflow.networks.text import TextAttention, TextEmbedding, Words


class Block(nn.Module):
    """Attention and a feed-forward map, each modulated by the condition and gated, with gates that start at zero.

    Args:
        config: the transformer's settings.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = SwiGLU(config.width)
        self.modulation = Bias(6 * config.width) if config.modulation == "shared" else zero_map(config.width, 6)
        self.text = TextAttention(config.width, config.width, config.heads) if config.texts else None

    def forward(
        self, x: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor], words: Words | None = None
    ) -> Tensor:
        """B×tokens×D to the same; `modulation` is B×D, or B×6D if all blocks share one map."""
        six = self.modulation(modulation).to(x.dtype)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six
        x = torch.addcmul(x, gate_1, self.attention(modulate(x, shift_1, scale_1), rotation))
        if self.text is not None:
            assert words is not None
            x = self.text(x, words)
        return torch.addcmul(x, gate_2, self.feed_forward(modulate(x, shift_2, scale_2)))


class DiT(nn.Module):
    """Patches → blocks modulated by (t, label) → patches (Peebles & Xie 2023, adaLN-zero).

    Accepts any height and width that the patch divides, whatever it was trained on.

    Args:
        config: its settings.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        inputs = resolved(config)
        self.channels, width, pixels = inputs.channels, config.width, config.patch**2 * inputs.channels
        self.patch_in = nn.Linear(pixels, width)
        self.picture_in = PictureIn(inputs.picture, config.patch, width) if inputs.picture else None
        self.embedding = ConditionEmbedding(inputs.classes, width, config.label_std)
        self.words = TextEmbedding(inputs.texts, width) if inputs.texts else None
        self.shared = zero_map(width, 6) if config.modulation == "shared" else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = zero_map(width, 2)
        self.patch_out = nn.Linear(width, pixels)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t B×C×H×W and t B (float32) to B×C×H×W.

        Raises:
            InputError: the patch does not divide H and W, or the channels or encoders differ.
        """
        height, width = grid = patch_grid(x_t, self.channels, self.config.patch)
        c, words = self.embedding(t, condition), None
        if self.words is not None:
            words = self.words(condition, len(x_t))
            c = c + words.pooled
        c = F.silu(c)
        rotation = axial_rotation(height, width, self.config.width // self.config.heads, x_t.device)
        x = self.patch_in(to_patches(x_t, self.config.patch))
        if self.picture_in is not None:
            x = self.picture_in(x, condition)
        x = x + grid_embedding(height, width, self.config.width, x_t.device).to(x.dtype)
        modulation = self.shared(c)
        for block in self.blocks:
            x = block(x, modulation, rotation, words)
        shift, scale = self.final(c).to(x.dtype)[:, None].chunk(2, dim=-1)
        return to_image(self.patch_out(modulate(x, shift, scale)), grid, self.config.patch)
