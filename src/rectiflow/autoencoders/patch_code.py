"""A linear code of patches, to stand beside the convolutions of an autoencoder."""

import torch
from torch import Tensor, nn

from rectiflow.autoencoders.config import AutoencoderConfig


class PatchCode(nn.Module):
    """Each patch of f×f pixels to C′ numbers and back, both linear.

    Args:
        config: the autoencoder's settings.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, latent, factor = config.channels or 0, config.latent_channels, config.factor
        self.to_latents = nn.Conv2d(channels, latent, factor, stride=factor)
        self.to_pixels = nn.ConvTranspose2d(latent, channels, factor, stride=factor)

    def begin_from(self, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
        """Begin from a linear code such as the principal components, with latents of unit deviation.

        Args:
            mean: C·f², of the patches, in the order of `pixel_unshuffle`.
            components: C′×C·f², orthonormal rows.
            deviations: C′ > 0, of the components over the pictures.
        """
        kernel = self.to_latents.weight.shape  # C′×C×f×f, of either
        assert self.to_latents.bias is not None
        assert self.to_pixels.bias is not None
        with torch.no_grad():
            self.to_latents.weight.copy_((components / deviations[:, None]).reshape(kernel))
            self.to_latents.bias.copy_(-(components @ mean) / deviations)
            self.to_pixels.weight.copy_((components * deviations[:, None]).reshape(kernel))
            # One bias for each channel: what is left of the mean patch is for the decoder to learn.
            self.to_pixels.bias.copy_(mean.reshape(kernel[1:]).mean((1, 2)))

    def repeat(self, one: "PatchCode", count: int) -> None:
        """Take a code of single frames for groups of `count` of them: of the last, of which all become copies."""
        channels = one.to_latents.weight.shape[1]
        with torch.no_grad():
            self.to_latents.weight.zero_()[:, -channels:] = one.to_latents.weight
            self.to_pixels.weight.copy_(one.to_pixels.weight.repeat(1, count, 1, 1))
            for mine, other, times in ((self.to_latents, one.to_latents, 1), (self.to_pixels, one.to_pixels, count)):
                assert mine.bias is not None
                assert other.bias is not None
                mine.bias.copy_(other.bias.repeat(times))
