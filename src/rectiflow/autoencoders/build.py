"""Which network an autoencoder's settings mean."""

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.vae import VAE
from rectiflow.autoencoders.video_vae import VideoVAE


def build_autoencoder(config: AutoencoderConfig) -> VAE | VideoVAE:
    """The network of these settings: of clips where temporal is above 1, else of pictures.

    Raises:
        InputError: the channels are still open.
    """
    return VideoVAE(config) if config.temporal > 1 else VAE(config)
