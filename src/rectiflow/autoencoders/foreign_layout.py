"""What the config.json of diffusers' AutoencoderKL says, and what it means for ours."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError

CLASS = "AutoencoderKL"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


class Layout(Config):
    """What a config.json says of its weights' meaning; the defaults are diffusers' for what is absent."""

    in_channels: int = Field(3, ge=1)
    out_channels: int = Field(3, ge=1)
    down_block_types: tuple[str, ...] = (_DOWN,)
    up_block_types: tuple[str, ...] = (_UP,)
    block_out_channels: tuple[int, ...] = Field((64,), min_length=1)
    layers_per_block: int = Field(1, ge=1)
    act_fn: str = "silu"
    latent_channels: int = Field(4, ge=1)
    norm_num_groups: int = Field(32, ge=1)
    scaling_factor: float = Field(0.18215, gt=0)
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


def config_of(layout: Layout, origin: Path) -> AutoencoderConfig:
    """The architecture that a layout describes.

    Raises:
        InputError: one that our VAE does not have; `origin` names the file.
    """
    levels = len(layout.block_out_channels)
    for name, kind in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        kinds = getattr(layout, name)
        if kinds != (kind,) * levels:
            raise refusal(origin, name, f"{kind} for each of the {levels} block_out_channels", ", ".join(kinds))
    if layout.act_fn not in ("silu", "swish"):
        raise refusal(origin, "act_fn", "silu", layout.act_fn)
    if layout.out_channels != layout.in_channels:
        raise refusal(origin, "out_channels", f"{layout.in_channels}, as in_channels is", layout.out_channels)
    if layout.use_post_quant_conv != layout.use_quant_conv:
        expected = f"{layout.use_quant_conv}, as use_quant_conv is"
        raise refusal(origin, "use_post_quant_conv", expected, layout.use_post_quant_conv)
    width = math.gcd(*layout.block_out_channels)
    settings = {
        "channels": layout.in_channels,
        "latent_channels": layout.latent_channels,
        "width": width,
        "multipliers": tuple(channels // max(width, 1) for channels in layout.block_out_channels),
        "blocks": layout.layers_per_block,
        "groups": layout.norm_num_groups,
        "attention": layout.mid_block_add_attention,
        "quantised": layout.use_quant_conv,
    }
    return AutoencoderConfig.parse(settings, str(origin))


def refusal(origin: Path, name: str, expected: str, received: object) -> InputError:
    """The one line for a setting that our VAE cannot follow."""
    return InputError(f"{origin}: {name}: expected {expected}; received {received}. Choose another autoencoder.")


def statistics_of(layout: Layout, origin: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel, C′.

    Raises:
        InputError: numbers that do not go together; `origin` names the file.
    """
    channels, shift = layout.latent_channels, layout.shift_factor or 0.0
    mean, deviation = layout.latents_mean, layout.latents_std
    if mean is None and deviation is None:
        mean, deviation = (shift,) * channels, (1.0,) * channels
    elif mean is None or deviation is None or shift:
        received = f"{mean}, {deviation} and {layout.shift_factor}"
        names = "latents_mean, latents_std and shift_factor"
        raise refusal(origin, names, "the first two together, or neither of them", received)
    if len(mean) != channels or len(deviation) != channels or min(deviation) <= 0:
        received = f"{list(mean)} and {list(deviation)}"
        raise refusal(origin, "latents_mean and latents_std", f"{channels} numbers each, the latter positive", received)
    return torch.tensor(mean), torch.tensor([value / layout.scaling_factor for value in deviation])


def settings_of(config: AutoencoderConfig, mean: float, deviation: float) -> dict[str, Any]:
    """The config.json of an AutoencoderKL with one mean and one deviation for all its latent channels."""
    levels = len(config.multipliers)
    layout = Layout(
        in_channels=config.channels or 0,
        out_channels=config.channels or 0,
        down_block_types=(_DOWN,) * levels,
        up_block_types=(_UP,) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        scaling_factor=_shortest(1 / deviation, lambda value: float(torch.tensor(1 / value)) == deviation),
        # 0, not null: the pipelines of SD3 and FLUX add it without asking.
        shift_factor=_shortest(mean, lambda value: float(torch.tensor(value)) == mean),
        use_quant_conv=config.quantised,
        use_post_quant_conv=config.quantised,
        mid_block_add_attention=config.attention,
    )
    return {"_class_name": CLASS, "_diffusers_version": "0.35.0", "sample_size": 512, **layout.model_dump()}


def _shortest(value: float, same: Callable[[float], bool]) -> float:
    """The number of fewest digits near `value` that is the same in float32: 0.18215, not 0.18214999."""
    return next((short for digits in range(1, 17) if same(short := float(f"{value:.{digits}g}"))), value)
