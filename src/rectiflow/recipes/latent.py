"""A folder of pictures by a flow in the latents of an autoencoder that is trained first, or taken."""

from rectiflow.autoencoders.config import PRESETS, AutoencoderConfig
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.flow.config import FlowConfig, TimesConfig
from rectiflow.networks.config import DiTConfig
from rectiflow.recipes.autoencoder import autoencoder
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import LatentConfig, PreviewConfig, RunConfig


def latent() -> RunConfig:
    """Your own pictures at 64×64: a VAE-GAN of factor 8, and a small transformer in its latents."""
    return RunConfig(
        recipe="latent",
        data=DataConfig(set="folder", size=64),
        latent=LatentConfig(train=autoencoder()),
        network=DiTConfig(patch=1, width=192, depth=6, heads=6, label_std=1.0),
        times=TimesConfig(density="logit-normal"),
        condition_dropout=0.1,
        steps=10_000,
        batch=32,
        optimiser=OptimiserConfig(lr=2e-3, warmup=100, decay="linear"),
        ema=EmaConfig(decay=0.995),
        every=EveryConfig(log=20, held_out=250, preview=500, first_preview=16, save=250),
        preview=PreviewConfig(count=6, steps=20, solver="ab2"),
    )


def latent_256() -> RunConfig:
    """Pictures at 256×256 for a GPU: f8 with 16 channels, widths 128 to 512, and a DiT-B/2 in 32×32 latents."""
    first = autoencoder()
    network = AutoencoderConfig.model_validate({**PRESETS["f8"], "width": 128, "blocks": 2, "groups": 32})
    stage_1 = first.model_copy(
        update={
            "data": DataConfig(set="folder", size=256, crop="random", flip=True),
            "network": network,
            "discriminator": first.discriminator.model_copy(update={"width": 64, "start": 0.3}),
            "steps": 100_000,
            "optimiser": OptimiserConfig(lr=1e-4, betas=(0.9, 0.99), warmup=1000, decay="cosine"),
            "ema": EmaConfig(decay=0.999),
            "every": EveryConfig(log=100, held_out=2000, preview=2000, first_preview=250, save=2000),
            "activation_checkpointing": True,
        }
    )
    return latent().model_copy(
        update={
            "recipe": "latent-256",
            "data": DataConfig(set="folder", size=256, flip=True),
            "latent": LatentConfig(train=stage_1, cache=LatentsConfig(variants=2)),
            "network": DiTConfig(patch=2, width=768, depth=12, heads=12),
            "flow": FlowConfig(shift=2.0),  # √(16·32·32 / 4096), so that larger latents see as much noise
            "steps": 400_000,
            "batch": 256,
            "optimiser": OptimiserConfig(lr=1e-4, betas=(0.9, 0.95), warmup=2000, decay="constant"),
            "ema": EmaConfig(decay=0.9999),
            "every": EveryConfig(log=100, held_out=5000, preview=5000, first_preview=500, save=5000),
        }
    )
