"""The causal autoencoder of clips: the one of pictures, frame by frame, with layers along time between its own."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.frames import fold, grouped, unfold, ungrouped
from rectiflow.autoencoders.patch_code import PatchCode
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.time_layers import Memory, Passage, TimeLayers
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError


class VideoVAE(nn.Module):
    """A variational autoencoder of clips of 1+temporal·k frames, to 1+k frames of latents, the first of which is of the
    first frame alone.

    Nothing looks ahead: latents up to j are a function of frames up to temporal·j, and the other way round. Norms and
    attention are of a frame, so all that is along time are convolutions, whose memory is a few frames.

    Args:
        config: its settings, with the channels of the clips and temporal above 1.

    Raises:
        InputError: the channels are still open.
    """

    # Factorised, (2+1)-D (Tran et al. 2018), where kernels of 3×3×3 multiply three times as much. For as many frames
    # the layers along time add 13 % to a step (width 16, 32×32, one CPU thread), and the weights of a picture network
    # are this one's by name.

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        assert config.temporal > 1
        picture = VAE(config)
        self.config = config
        self.encoder, self.decoder = picture.encoder, picture.decoder
        self.to_moments, self.from_latents = picture.to_moments, picture.from_latents
        self.code = picture.code
        # Of so many frames at once; the first frame of a clip has the code of pictures.
        groups = config.model_copy(update={"channels": config.temporal * (config.channels or 0)})
        self.later_code = PatchCode(groups) if config.linear else None
        self.encoder_time, self.decoder_time = TimeLayers.of_encoder(config), TimeLayers.of_decoder(config)

    def start_from_image(self, vae: VAE) -> None:
        """Take the weights of an autoencoder of pictures, whose results clips of one frame then have if time is new.

        A linear code of pictures is taken for the last of so many frames, which all of them then repeat.

        Raises:
            InputError: another layout; the setting that differs is named.
        """
        theirs, ours = (config.model_dump(exclude={"temporal"}) for config in (vae.config, self.config))
        for name, value in ours.items():
            if theirs[name] != value:
                raise InputError(
                    f"network.{name} is {value}, but the autoencoder of pictures to start from has {theirs[name]}; "
                    "set it alike, or start from another."
                )
        self.load_state_dict({**self.state_dict(), **vae.state_dict()})
        if vae.code is not None and self.later_code is not None:
            self.later_code.repeat(vae.code, self.config.temporal)

    def encode(self, x: Tensor, memory: Memory | None = None) -> Posterior:
        """The posterior of clips B×C×T×H×W in [−1, 1]; its parts are B×C′×T′×h×w.

        Args:
            x: clips, or with a memory the next chunk of them: of 1+temporal·k frames if it is the first, else of
                temporal·k.
            memory: of the chunks before; None where x is all.
        """
        batch, first = len(x), memory is None or not memory.kept
        moments = self.to_moments(self.encoder(fold(x), Passage(self.encoder_time, batch, memory)))
        posterior = Posterior.of(unfold(moments, batch))
        if self.code is None or self.later_code is None:
            return posterior
        alone = [unfold(self.code.to_latents(fold(x[:, :, :1])), batch)] if first else []
        later = self.later_code.to_latents(grouped(x[:, :, len(alone) :], self.config.temporal))
        coded = torch.cat([*alone, unfold(later, batch)], dim=2)
        return Posterior(posterior.mean + coded, posterior.log_variance)

    def decode(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        """Clips B×C×T×fh×fw, in about [−1, 1], of latents B×C′×T′×h×w as the posterior has them.

        Args:
            latents: all of them, or with a memory the next chunk.
            memory: of the chunks before; None where these are all.
        """
        batch, draft = len(latents), self._draft(latents, first=memory is None or not memory.kept)
        frames = self.decoder(self.from_latents(fold(latents)), draft, Passage(self.decoder_time, batch, memory))
        return unfold(frames if draft is None else frames + draft, batch)

    def _draft(self, latents: Tensor, first: bool) -> Tensor | None:
        """What a linear code makes of latents, which are of a clip's first frame or not: (B·T)×C×fh×fw."""
        if self.code is None or self.later_code is None:
            return None
        batch = len(latents)
        alone = [unfold(self.code.to_pixels(fold(latents[:, :, :1])), batch)] if first else []
        later = self.later_code.to_pixels(fold(latents[:, :, len(alone) :]))
        return fold(torch.cat([*alone, ungrouped(later, self.config.temporal, batch)], dim=2))

    def encode_chunks(self, x: Tensor, count: int) -> Iterator[Posterior]:
        """`encode` in chunks of `count` ≥ 1 frames of latents, in order: equal, in the memory that one chunk takes."""
        memory, size = Memory(), self.config.temporal * count
        first = 1 + self.config.temporal * (count - 1)
        yield self.encode(x[:, :, :first], memory)
        for start in range(first, x.shape[2], size):
            yield self.encode(x[:, :, start : start + size], memory)

    def decode_chunks(self, latents: Tensor, count: int) -> Iterator[Tensor]:
        """`decode` in chunks of `count` ≥ 1 frames of latents, in order: equal, in the memory that one chunk takes."""
        memory = Memory()
        for part in latents.split(count, dim=2):
            yield self.decode(part, memory)

    def forward(self, x: Tensor, draw: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The clips decoded from one draw of their latents, and the moments of these, B×2C′×T′×h×w.

        Args:
            x: clips, B×C×T×H×W.
            draw: standard normal, B×C′×T′×h×w.
            move: what is done to the latents before they are decoded; None is nothing.
        """
        posterior = self.encode(x)
        latents = posterior.sample(draw)
        return self.decode(latents if move is None else move(latents)), posterior.moments

    @property
    def last_layers(self) -> tuple[Tensor, ...]:
        """The kernels that make the pixels, by whose gradients losses are balanced."""
        codes = [code.to_pixels.weight for code in (self.code, self.later_code) if code is not None]
        return (self.decoder.conv_out.weight, *codes)
