"""The transformer of two streams, a picture's and a caption's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.networks.config import MMDiTConfig, resolved
from rectiflow.networks.layers import Attention, ConditionEmbedding, SwiGLU, attend, axial_rotation, grid_embedding
from rectiflow.networks.patches import Bias, PictureIn, modulate, patch_grid, to_image, to_patches, zero_map
from rectiflow.networks.text import TextEmbedding


class Stream(nn.Module):
    """What a block has for one kind of tokens: their projections, their feed-forward map and their modulation.

    Args:
        config: the transformer's settings.
        last: whether nothing comes after, so that these tokens are attended to and not changed.
    """

    def __init__(self, config: MMDiTConfig, last: bool) -> None:
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

    def __init__(self, config: MMDiTConfig, last: bool) -> None:
        super().__init__()
        self.picture, self.text = Stream(config, last=False), Stream(config, last)

    def forward(
        self, x: Tensor, y: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x B×tokens×D of the picture and y B×L×D of the caption to the same.

        Args:
            x: B×tokens×D.
            y: B×L×D.
            modulation: B×D, or B×12D if all blocks share one map, the picture's six first.
            rotation: of the picture's tokens; the caption's know their places already.
            mask: bool B×(tokens+L), true where there is a token.
        """
        first, second = modulation, modulation
        if modulation.shape[-1] != x.shape[-1]:
            first, second = modulation.chunk(2, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.picture.modulations(first, x.dtype)
        told = self.text.modulations(second, y.dtype)
        of_x = self.picture.attention.project(modulate(x, shift_1, scale_1), rotation)
        of_y = self.text.attention.project(modulate(y, told[0], told[1]), None)
        query, key, value = (torch.cat(pair, dim=-2) for pair in zip(of_x, of_y, strict=True))
        if len(told) == 2:
            query = query[..., : x.shape[1], :]
        attended = attend(query, key, value, mask)
        x = torch.addcmul(x, gate_1, self.picture.attention.merge(attended[..., : x.shape[1], :]))
        x = torch.addcmul(x, gate_2, self.picture.feed_forward(modulate(x, shift_2, scale_2)))
        if len(told) == 6:
            y = torch.addcmul(y, told[2], self.text.attention.merge(attended[..., x.shape[1] :, :]))
            y = torch.addcmul(y, told[5], self.text.feed_forward(modulate(y, told[3], told[4])))
        return x, y


class MMDiT(nn.Module):
    """Patches and tokens of a caption → joint blocks → patches (Esser et al. 2024).

    Accepts any height and width that the patch divides, and captions of any length.

    Args:
        config: its settings.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        inputs = resolved(config)
        self.channels, width, pixels = inputs.channels, config.width, config.patch**2 * inputs.channels
        self.patch_in = nn.Linear(pixels, width)
        self.picture_in = PictureIn(inputs.picture, config.patch, width) if inputs.picture else None
        self.embedding = ConditionEmbedding(inputs.classes, width, config.label_std)
        self.words = TextEmbedding(inputs.texts, width)
        self.shared = zero_map(width, 12) if config.modulation == "shared" else nn.Identity()
        self.blocks = nn.ModuleList(JointBlock(config, i == config.depth - 1) for i in range(config.depth))
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
        words = self.words(condition, len(x_t))
        c = F.silu(self.embedding(t, condition) + words.pooled)
        rotation = axial_rotation(height, width, self.config.width // self.config.heads, x_t.device)
        x = self.patch_in(to_patches(x_t, self.config.patch))
        if self.picture_in is not None:
            x = self.picture_in(x, condition)
        x = x + grid_embedding(height, width, self.config.width, x_t.device).to(x.dtype)
        y = words.tokens.to(x.dtype)
        mask = torch.cat([words.mask.new_ones(len(x), x.shape[1]), words.mask], dim=1)
        modulation = self.shared(c)
        for block in self.blocks:
            x, y = block(x, y, modulation, rotation, mask)
        shift, scale = self.final(c).to(x.dtype)[:, None].chunk(2, dim=-1)
        return to_image(self.patch_out(modulate(x, shift, scale)), grid, self.config.patch)
