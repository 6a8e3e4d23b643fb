"""The same networks by diffusers, wrapped to be called as ours are: network(x_t, t, condition)."""

import torch
from diffusers import CogVideoXTransformer3DModel, DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from rectiflow.base.condition import Condition

CLASSES = 10


class PeerDiT(nn.Module):
    """diffusers' DiTTransformer2DModel of patch 2; it leaves no labels out by itself, which each block would do anew.

    Args:
        heads: number of heads.
        head: features of a head.
        depth: blocks.
        side: of the input, of 4 channels.
        classes: number of labels.
    """

    def __init__(self, heads: int = 8, head: int = 32, depth: int = 6, side: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.net = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head,
            in_channels=4,
            out_channels=4,
            num_layers=depth,
            sample_size=side,
            patch_size=2,
            num_embeds_ada_norm=classes,
        )
        for part in self.modules():
            if isinstance(part, LabelEmbedding):
                part.dropout_prob = 0.0

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        labels = torch.where(condition.labels < 0, self.classes, condition.labels)  # its null class is the last row
        return self.net(x_t, timestep=(1000 * t).long(), class_labels=labels).sample


class PeerUNet(nn.Module):
    """diffusers' UNet2DModel: widths 64, 128, 128, two blocks a level, four heads of attention at 16×16.

    Args:
        classes: number of labels; 0 is unconditional.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.net = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(64, 128, 128),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            num_class_embeds=classes + 1 if classes else None,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        labels = torch.where(condition.labels < 0, self.classes, condition.labels) if self.classes else None
        return self.net(x_t, 1000 * t, class_labels=labels).sample


class PeerMMDiT(nn.Module):
    """diffusers' SD3Transformer2DModel: two streams, normalised queries and keys; captions as states of an encoder.

    Args:
        heads: number of heads.
        head: features of a head.
        depth: blocks.
        shape: C, H, W of the input.
        features: of the state of a token, and of the vector of a whole caption.
    """

    def __init__(self, heads: int, head: int, depth: int, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.net = SD3Transformer2DModel(
            sample_size=shape[-1],
            pos_embed_max_size=shape[-1] // 2,
            patch_size=2,
            in_channels=shape[0],
            out_channels=shape[0],
            num_layers=depth,
            attention_head_dim=head,
            num_attention_heads=heads,
            joint_attention_dim=features,
            caption_projection_dim=heads * head,
            pooled_projection_dim=features,
            qk_norm="rms_norm",
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        (text,) = condition.texts
        return self.net(x_t, text.values, text.pooled, 1000 * t).sample


class PeerVideo(nn.Module):
    """diffusers' CogVideoXTransformer3DModel: full attention over a clip's tokens and a caption's together.

    Args:
        heads: number of heads.
        head: features of a head.
        depth: blocks.
        shape: C, T, H, W of the input.
        features: of the state of a token.
        length: tokens of a caption.
    """

    def __init__(self, heads: int, head: int, depth: int, shape: tuple[int, ...], features: int, length: int) -> None:
        super().__init__()
        self.net = CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head,
            in_channels=shape[0],
            out_channels=shape[0],
            time_embed_dim=heads * head,
            text_embed_dim=features,
            num_layers=depth,
            sample_frames=4 * (shape[1] - 1) + 1,
            sample_height=shape[2],
            sample_width=shape[3],
            patch_size=2,
            max_text_seq_length=length,
        )

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        (text,) = condition.texts
        return self.net(x_t.transpose(1, 2), text.values, 1000 * t).sample.transpose(1, 2)
