"""Encoders from a local folder, as their own library writes them."""

import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from rectiflow.base.errors import InputError
from rectiflow.evaluation.features import features

SIZE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def dino():
    config = Dinov2Config(**TINY, image_size=28, patch_size=14, mlp_ratio=2)
    return Dinov2Model(config), BitImageProcessor(**SIZE), 32


def clip():
    vision = {**TINY, "intermediate_size": 64, "image_size": 28, "patch_size": 14}
    text = {**TINY, "intermediate_size": 64, "vocab_size": 99}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return CLIPModel(config), CLIPImageProcessor(**SIZE), 24


@pytest.mark.parametrize("make", [dino, clip])
def test_a_local_encoder_gives_a_feature_a_picture(make, tmp_path):
    torch.manual_seed(0)
    model, processor, width = make()
    model.save_pretrained(tmp_path / "encoder")
    processor.save_pretrained(tmp_path / "encoder")
    found = features(str(tmp_path / "encoder"), None)
    together = found(X)
    assert together.shape == (5, width)
    assert together.dtype == torch.float64
    assert torch.allclose(found(X[3:4]), together[3:4], atol=1e-5)
    assert float(together.std(0).min()) > 0


def test_nothing_is_downloaded():
    with pytest.raises(InputError, match="nothing is downloaded"):
        features("facebook/dinov2-base", None)
