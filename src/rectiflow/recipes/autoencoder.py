"""Autoencoders of pictures and of clips: the first stage of a latent model, or a model by itself."""

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.data.config import DataConfig
from rectiflow.training.autoencoder_config import AutoencoderRunConfig, DiscriminatorConfig, ReconstructionConfig
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig


def autoencoder() -> AutoencoderRunConfig:
    """A VAE-GAN of factor 8 with 16 channels, at 64×64, on random crops."""
    return AutoencoderRunConfig(
        recipe="autoencoder",
        data=DataConfig(set="folder", size=64, crop="random", flip=True),
        network=AutoencoderConfig(width=16, multipliers=(1, 2, 4, 8), linear=True),
        loss=ReconstructionConfig(absolute=1.0, structure=0.5, kl=1e-6),
        discriminator=DiscriminatorConfig(),
        steps=4000,
        batch=16,
        optimiser=OptimiserConfig(lr=1e-3, betas=(0.9, 0.99), warmup=100, decay="cosine"),
        ema=EmaConfig(decay=0.995),
        every=EveryConfig(log=20, held_out=250, preview=500, first_preview=125, save=500),
    )


def video_autoencoder() -> AutoencoderRunConfig:
    """A causal VAE of clips, of factor 4 in space and time with 16 channels, on digit-clips.

    It wants to start from an autoencoder of the clips' frames (`frame_autoencoder`, `start_from`). A digit of these
    clips fills few latents, so the linear code begins with all components at one deviation (`isometric`), and a flow
    in it with more noise than is usual (docs/video.md).
    """
    return AutoencoderRunConfig(
        recipe="video-autoencoder",
        data=DataConfig(set="digit-clips", frames=17),
        network=AutoencoderConfig(width=16, multipliers=(1, 2, 4), latent_channels=16, linear=True, temporal=4),
        loss=ReconstructionConfig(absolute=1.0, square=5.0, kl=1e-6),
        discriminator=DiscriminatorConfig(weight=0.0, width=16),
        isometric=True,
        steps=3000,
        batch=4,
        optimiser=OptimiserConfig(lr=2e-3, betas=(0.9, 0.99), warmup=50, decay="cosine"),
        ema=EmaConfig(decay=0.99),
        every=EveryConfig(log=20, held_out=200, preview=400, first_preview=100, save=400),
    )


def frame_autoencoder() -> AutoencoderRunConfig:
    """A VAE of the single frames of digit-clips, from which `video_autoencoder` may start."""
    clips = video_autoencoder()
    return clips.model_copy(
        update={
            "recipe": "frame-autoencoder",
            "network": clips.network.model_copy(update={"temporal": 1}),
            "loss": ReconstructionConfig(absolute=1.0, square=5.0, structure=0.2, kl=1e-6),
            "steps": 1000,
            "batch": 32,
            "ema": EmaConfig(decay=0.995),
        }
    )
