"""The variational autoencoder: convolutions to a smaller picture of more channels, and back."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.layers import GrowingConv, NormSiLU
from rectiflow.autoencoders.patch_code import PatchCode
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.base.errors import InputError
from rectiflow.networks.layers import attend
from rectiflow.networks.unet_layers import zeroed

_EPSILON = 1e-6
_LOG_VARIANCE = -8.0  # of the posterior at first


class Between(Protocol):
    """What stands between the layers of an encoder or a decoder, if anything does."""

    def mix(self, frames: Tensor, block: int) -> Tensor:
        """After residual block number `block`, or −1 for the middle: B×C×H×W to the same."""

    def scale(self, frames: Tensor, level: int) -> Tensor:
        """After the shrink or growth number `level`: B×C×H×W to B′×C×H×W."""


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))).

    Args:
        before: channels of the input.
        after: channels of the output; where they differ, x passes a 1×1 convolution.
        groups: of the norms.
    """

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm_in = NormSiLU(groups, before, _EPSILON)
        self.conv_in = nn.Conv2d(before, after, 3, padding=1)
        self.norm_out = NormSiLU(groups, after, _EPSILON)
        self.conv_out = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W to B×C′×H×W."""
        h = self.conv_in(self.norm_in(x))
        out: Tensor = self.skip(x) + self.conv_out(self.norm_out(h))
        return out


class MiddleAttention(nn.Module):
    """x + attention of one head over all pixels of the normalised x.

    Args:
        channels: C.
        groups: of the norm.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, _EPSILON)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W to the same."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
        attended = attend(self.query(tokens), self.key(tokens), self.value(tokens))
        return x + self.out(attended[:, 0]).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Middle(nn.Module):
    """Two residual blocks at the coarsest level, with attention between them if asked for.

    Args:
        config: the autoencoder's settings.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.first, self.second = (Residual(width, width, config.groups) for _ in range(2))
        self.attention = MiddleAttention(width, config.groups) if config.attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w to the same."""
        out: Tensor = self.second(self.attention(self.first(x)))
        return out


class Encoder(nn.Module):
    """Pictures to moments of latents.

    Args:
        config: the autoencoder's settings.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, self.per_level = config.widths, config.blocks
        inputs = [widths[0], *widths]
        self.conv_in = nn.Conv2d(config.channels or 0, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            Residual(inputs[level] if block == 0 else width, width, config.groups)
            for level, width in enumerate(widths)
            for block in range(config.blocks)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2) for width in widths[:-1])
        self.middle = Middle(config)
        self.norm_out = NormSiLU(config.groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, between: Between | None = None) -> Tensor:
        """B×C×H×W to B×2C′×H/f×W/f."""
        h = self.conv_in(x)
        for index, block in enumerate(self.blocks):
            level, place = divmod(index, self.per_level)
            if level and place == 0:
                h = self.shrink[level - 1](F.pad(h, (0, 1, 0, 1)))
                h = h if between is None else between.scale(h, level - 1)
            h = block(h)
            h = h if between is None else between.mix(h, index)
        h = self.middle(h)
        h = h if between is None else between.mix(h, -1)
        out: Tensor = self.conv_out(self.norm_out(h))
        return out


class Decoder(nn.Module):
    """Latents to pictures.

    Args:
        config: the autoencoder's settings.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, self.per_level = config.widths[::-1], config.blocks + 1
        inputs = [widths[0], *widths]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(config)
        self.blocks = nn.ModuleList(
            Residual(inputs[level] if block == 0 else width, width, config.groups)
            for level, width in enumerate(widths)
            for block in range(self.per_level)
        )
        self.grow = nn.ModuleList(GrowingConv(width) for width in widths[:-1])
        # What the linear code makes of the latents is looked at where pictures have their full size.
        self.see = nn.Conv2d(config.channels or 0, inputs[-2], 3, padding=1) if config.linear else None
        self.norm_out = NormSiLU(config.groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config.channels or 0, 3, padding=1)

    def forward(self, latents: Tensor, draft: Tensor | None = None, between: Between | None = None) -> Tensor:
        """B×C′×h×w, and with a linear code what that makes of them, B×C×fh×fw, to B×C×fh×fw."""
        h = self.middle(self.conv_in(latents))
        h = h if between is None else between.mix(h, -1)
        for index, block in enumerate(self.blocks):
            level, place = divmod(index, self.per_level)
            if level and place == 0:
                h = self.grow[level - 1](h)
                h = h if between is None else between.scale(h, level - 1)
            if self.see is not None and draft is not None and index == len(self.blocks) - self.per_level:
                h = h + self.see(draft)
            h = block(h)
            h = h if between is None else between.mix(h, index)
        out: Tensor = self.conv_out(self.norm_out(h))
        return out


class VAE(nn.Module):
    """A variational autoencoder of pictures whose height and width its factor f divides.

    Its latents are as the encoder gives them; `LatentSpace` pads, normalises and tiles.

    Args:
        config: its settings, with the channels of the pictures.

    Raises:
        InputError: the channels are still open.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        if config.channels is None:
            raise InputError("network.channels is left to the data; an autoencoder needs it as a number.")
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        latent = config.latent_channels
        self.to_moments = nn.Conv2d(2 * latent, 2 * latent, 1) if config.quantised else nn.Identity()
        self.from_latents = nn.Conv2d(latent, latent, 1) if config.quantised else nn.Identity()
        self.code = PatchCode(config) if config.linear else None
        self._begin()

    def _begin(self) -> None:
        """Weights from which few steps go far: pictures pass through and residual branches add nothing at first."""
        latent = self.config.latent_channels
        for module in self.modules():
            if isinstance(module, Residual):
                zeroed(module.conv_out)
                if isinstance(module.skip, nn.Conv2d):
                    nn.init.orthogonal_(module.skip.weight)
            if isinstance(module, MiddleAttention):
                zeroed(module.out)
        for conv in self.encoder.shrink:
            assert isinstance(conv, nn.Conv2d)
            block = nn.init.orthogonal_(torch.empty(*conv.weight.shape[:2], 2, 2))
            with torch.no_grad():
                conv.weight.zero_()[:, :, :2, :2] = block
        for conv in self.decoder.grow:
            assert isinstance(conv, nn.Conv2d)
            with torch.no_grad():
                conv.weight.mul_(0.5)[:, :, 1, 1] += torch.eye(len(conv.weight))
        for conv in (self.encoder.conv_in, self.decoder.conv_in):
            nn.init.orthogonal_(conv.weight)
        said_by = self.to_moments if isinstance(self.to_moments, nn.Conv2d) else self.encoder.conv_out
        if self.code is not None:  # the linear code alone, at first
            zeroed(said_by)
            zeroed(self.decoder.conv_out)
        # Latents that begin with a deviation of 1 drown in their own noise, and a small KL weight lets go of it slowly.
        assert said_by.bias is not None
        nn.init.constant_(said_by.bias[latent:], _LOG_VARIANCE)

    def encode(self, x: Tensor) -> Posterior:
        """The posterior of pictures B×C×H×W in [−1, 1]."""
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = Posterior.of(self.to_moments(self.encoder(x)))
        if self.code is None:
            return posterior
        return Posterior(posterior.mean + self.code.to_latents(x), posterior.log_variance)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures B×C×fh×fw, in about [−1, 1], of latents as the posterior has them."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        draft = None if self.code is None else self.code.to_pixels(latents)
        out: Tensor = self.decoder(self.from_latents(latents), draft)
        return out if draft is None else out + draft

    def forward(self, x: Tensor, draw: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The pictures decoded from one draw of their latents, and the moments of these, B×2C′×h×w.

        One call for both halves, so that a wrapper such as DistributedDataParallel sees the whole of a step.

        Args:
            x: pictures, B×C×H×W.
            draw: standard normal, B×C′×h×w.
            move: what is done to the latents before they are decoded; None is nothing.
        """
        posterior = self.encode(x)
        latents = posterior.sample(draw)
        return self.decode(latents if move is None else move(latents)), posterior.moments

    @property
    def last_layers(self) -> tuple[Tensor, ...]:
        """The kernels that make the pixels, by whose gradients losses are balanced."""
        made_by = self.decoder.conv_out.weight
        return (made_by,) if self.code is None else (made_by, self.code.to_pixels.weight)
