"""The same networks by diffusers, wrapped to be called as ours are: network(x_t, t, condition)."""

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from rectiflow.base.condition import Condition

CLASSES = 10


class PeerDiT(nn.Module):
    """diffusers' DiTTransformer2DModel: width 256, depth 6, patch 2, input 4×16×16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DiTTransformer2DModel(
            num_attention_heads=8,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=CLASSES,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        labels = torch.where(condition.labels < 0, CLASSES, condition.labels)  # its null class is the last row
        return self.net(x_t, timestep=(1000 * t).long(), class_labels=labels).sample


class PeerUNet(nn.Module):
    """diffusers' UNet2DModel of 6.5 M parameters: widths 64, 128, 128, two blocks a level, attention at 16×16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(64, 128, 128),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=CLASSES + 1,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        labels = torch.where(condition.labels < 0, CLASSES, condition.labels)
        return self.net(x_t, 1000 * t, class_labels=labels).sample
