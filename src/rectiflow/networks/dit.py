"""The diffusion transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.networks.config import DiTConfig, resolved
from rectiflow.networks.layers import (
    Attention,
    ConditionEmbedding,
    SwiGLU,
    axial_rotation,
    grid_embedding,
    normalise,
)


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


def _zero(width: int, parts: int) -> nn.Linear:
    """A map from D to `parts`·D whose output starts at zero: each block starts as the identity."""
    layer = nn.Linear(width, parts * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Attention and a feed-forward map, each modulated by the condition and gated, with gates that start at zero.

    Args:
        config: the transformer's settings.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = SwiGLU(config.width)
        self.modulation = Bias(6 * config.width) if config.modulation == "shared" else _zero(config.width, 6)

    def forward(self, x: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """B×tokens×D to the same; `modulation` is B×D, or B×6D if all blocks share one map."""
        six = self.modulation(modulation).to(x.dtype)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six
        x = torch.addcmul(x, gate_1, self.attention(modulate(x, shift_1, scale_1), rotation))
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
        self.channels, classes = resolved(config)
        width, pixels = config.width, config.patch**2 * self.channels
        self.patch_in = nn.Linear(pixels, width)
        self.embedding = ConditionEmbedding(classes, width, config.label_std)
        self.shared = _zero(width, 6) if config.modulation == "shared" else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = _zero(width, 2)
        self.patch_out = nn.Linear(width, pixels)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t B×C×H×W and t B (float32) to B×C×H×W.

        Raises:
            InputError: the patch does not divide H and W, or the channels differ.
        """
        height, width = self._grid(x_t)
        c = F.silu(self.embedding(t, condition))
        rotation = axial_rotation(height, width, self.config.width // self.config.heads, x_t.device)
        x = self.patch_in(self._patches(x_t, height, width))
        x = x + grid_embedding(height, width, self.config.width, x_t.device).to(x.dtype)
        modulation = self.shared(c)
        for block in self.blocks:
            x = block(x, modulation, rotation)
        shift, scale = self.final(c).to(x.dtype)[:, None].chunk(2, dim=-1)
        return self._image(self.patch_out(modulate(x, shift, scale)), height, width)

    def _grid(self, x_t: Tensor) -> tuple[int, int]:
        _, channels, height, width = x_t.shape
        patch = self.config.patch
        if channels != self.channels:
            raise InputError(f"this network takes {self.channels} channels, received {channels}.")
        if height % patch or width % patch or height * width == 0:
            near = f"{max(round(height / patch), 1) * patch}×{max(round(width / patch), 1) * patch}"
            raise InputError(f"the patch of {patch} does not divide {height}×{width}; the nearest size is {near}.")
        return height // patch, width // patch

    def _patches(self, x: Tensor, height: int, width: int) -> Tensor:
        patch = self.config.patch
        x = x.reshape(len(x), -1, height, patch, width, patch)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B×(height·width)×(C·patch²)

    def _image(self, x: Tensor, height: int, width: int) -> Tensor:
        patch = self.config.patch
        x = x.reshape(len(x), height, width, -1, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, height * patch, width * patch)
