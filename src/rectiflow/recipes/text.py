"""Text to image: a flow told captions by an encoder of its own, on digit-scenes or on captioned pictures."""

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.conditioning.config import LearnedConfig, TextConfig
from rectiflow.data.config import DataConfig
from rectiflow.flow.config import TimesConfig
from rectiflow.networks.config import MMDiTConfig
from rectiflow.recipes.autoencoder import autoencoder
from rectiflow.recipes.latent import latent
from rectiflow.training.autoencoder_config import ReconstructionConfig
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import LatentConfig, PreviewConfig, RunConfig


def scenes() -> RunConfig:
    """Coloured digits in named places, 32×32, from sentences that say exactly what is in them."""
    first = autoencoder()
    stage_1 = first.model_copy(
        update={
            "data": DataConfig(set="digit-scenes"),
            "network": AutoencoderConfig(width=16, multipliers=(1, 2, 4), latent_channels=8, linear=True),
            "loss": ReconstructionConfig(absolute=1.0, square=5.0, structure=0.2),
            "discriminator": first.discriminator.model_copy(update={"weight": 0.0}),
            "steps": 2000,
            "every": EveryConfig(log=50, held_out=500, preview=1000, first_preview=0, save=1000),
        }
    )
    return RunConfig(
        recipe="scenes",
        data=DataConfig(set="digit-scenes"),
        latent=LatentConfig(train=stage_1),
        network=MMDiTConfig(patch=2, width=160, depth=5, heads=5),
        text=TextConfig(encoders=(LearnedConfig(vocabulary=400, length=48, width=128),)),
        times=TimesConfig(density="logit-normal"),
        condition_dropout=0.1,
        steps=10_000,
        batch=64,
        optimiser=OptimiserConfig(lr=2e-3, warmup=200, decay="linear"),
        ema=EmaConfig(decay=0.998),
        every=EveryConfig(log=50, held_out=1000, preview=1000, first_preview=0, save=1000),
        preview=PreviewConfig(count=8, rows=8, steps=20, solver="ab2"),
        compile=True,
    )


def text() -> RunConfig:
    """A folder of captioned pictures at 64×64, in the latents of an autoencoder that is trained first, or taken."""
    base = latent()
    return base.model_copy(
        update={
            "recipe": "text",
            "network": MMDiTConfig(patch=1, width=192, depth=6, heads=6, label_std=1.0),
            "text": TextConfig(),
        }
    )
