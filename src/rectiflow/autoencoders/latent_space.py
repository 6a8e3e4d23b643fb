"""The latents of an autoencoder as a flow sees them: zero mean, unit deviation, of pictures or clips of any size."""

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.autoencoders.autoencoder import Autoencoder
from rectiflow.autoencoders.config import check_frames
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.tiling import sliced, tiled
from rectiflow.autoencoders.vae import VAE
from rectiflow.autoencoders.video_vae import VideoVAE
from rectiflow.base.errors import InputError

PIXELS_A_CALL = 2**20  # four pictures of 512×512; activations are what fills the memory
_SHORTEST_TILE = 4  # in latents: a quarter of it, the overlap, is then one


@final
class LatentSpace(Autoencoder):
    """A frozen VAE whose latents are normalised per channel: (l − mean) / deviation. Nobody else scales them.

    A batch goes through the network in parts of at most 2²⁰ pixels, or picture by picture, and a picture of a side
    longer than `tile` as overlapping tiles that are blended linearly. Slices change nothing. Tiles do: norms and
    attention see one tile in place of the picture. Clips go through in chunks of frames besides, which changes nothing:
    the memory that a clip takes beside itself and its result does not depend on its length, but for that of tiles.

    Args:
        network: the VAE, of pictures B×C×H×W or of clips B×C×T×H×W; the latter's latents are B×C′×T′×h×w.
        mean: C′, of each latent channel; None is 0.
        deviation: C′ > 0, of each latent channel; None is 1.
        tile: longest side of a tile in pixels, in whole latents and at least four of them; 0: never in tiles.

    Raises:
        InputError: statistics of another shape, or not finite; a deviation that is not positive; a negative tile.
    """

    def __init__(
        self, network: VAE | VideoVAE, mean: Tensor | None = None, deviation: Tensor | None = None, tile: int = 512
    ) -> None:
        channels = network.config.latent_channels
        self.network, self.tile = network, tile
        self.mean = torch.zeros(channels) if mean is None else mean.detach().float().cpu()
        self.deviation = torch.ones(channels) if deviation is None else deviation.detach().float().cpu()
        fit = self.mean.shape == self.deviation.shape == (channels,)
        if not fit or not (self.mean.isfinite() & self.deviation.isfinite() & (self.deviation > 0)).all():
            raise InputError(f"expected a mean and a positive deviation for each of the {channels} latent channels.")
        if tile < 0:
            raise InputError(f"expected a tile of 0 (never) or more pixels, received {tile}.")

    @property
    def factor(self) -> int:
        """f, by which latents are smaller than pictures on each side."""
        return self.network.config.factor

    @property
    def temporal(self) -> int:
        """Frames to each frame of latents but the first, which is of the first frame alone; 1 of pictures."""
        return self.network.config.temporal

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """C′×⌈H/f⌉×⌈W/f⌉ of a picture C×H×W; C′×(1+(T−1)/temporal)×⌈H/f⌉×⌈W/f⌉ of a clip C×T×H×W."""
        return self.network.config.latent_shape(shape)

    def check(self, shape: Sequence[int]) -> None:
        """Nothing, if pictures of shape C×H×W can be encoded, or clips of shape C×T×H×W.

        Raises:
            InputError: a side shorter than f, other channels than the autoencoder's, pictures in place of clips or the
                other way round, or frames that are not 1+temporal·k.
        """
        check_frames(self.temporal, shape)
        channels, height, width = shape[0], shape[-2], shape[-1]
        wanted = self.network.config.channels
        if channels != wanted:
            remedy = {1: "data.colour=grey", 3: "data.colour=rgb"}.get(wanted or 0, "another autoencoder")
            raise InputError(f"the autoencoder takes {wanted} channels; the data have {channels}. Use {remedy}.")
        if min(height, width) < self.factor:
            raise InputError(
                f"pictures of {height}×{width} are smaller than the autoencoder's factor {self.factor}; enlarge them."
            )

    def moments(self, x: Tensor) -> Tensor:
        """Means and log-variances of the normalised latents of pictures B×C×H×W in [−1, 1]: B×2C′×h×w, float32.

        Of clips B×C×T×H×W they are B×2C′×T′×h×w. Pictures whose sides f does not divide are continued by their last row
        and column. They may lie on any device.

        Raises:
            InputError: as of `check`.
        """
        self.check(x.shape[1:])
        x = x.to(next(self.network.parameters()).device)
        height, width = x.shape[-2:]
        sides = (0, -width % self.factor, 0, -height % self.factor)
        padded = F.pad(x, sides if x.dim() == 4 else (*sides, 0, 0), mode="replicate") if any(sides) else x
        moments = self._pieces(self._moments_of, padded, (self.factor, 1))
        mean, deviation = self._statistics(moments)
        means, log_variances = moments.chunk(2, dim=1)
        return Posterior((means - mean) / deviation, log_variances - 2 * deviation.log()).moments

    def stored_moments(self, x: Tensor) -> Tensor:
        """What a cache keeps of pictures or clips: `moments`, and of clips of more than one frame one frame more.

        The last is of the clip's last frame by itself, as which it may be given to a flow: B×2C′×(T′+1)×h×w.

        Raises:
            InputError: as of `check`.
        """
        moments = self.moments(x)
        if x.dim() == 4 or x.shape[2] == 1:
            return moments
        return torch.cat([moments, self.moments(x[:, :, -1:])], dim=2)

    def encode(self, x: Tensor) -> Tensor:
        """The means of the normalised latents of pictures B×C×H×W in [−1, 1]: B×C′×h×w, float32; of clips likewise.

        Raises:
            InputError: as of `check`.
        """
        return self.moments(x).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Pictures in about [−1, 1] of normalised latents B×C′×h×w, float32; clips of latents of clips.

        Args:
            latents: B×C′×h×w, or B×C′×T′×h×w of clips of 1+temporal·(T′−1) frames.
            size: H, W of the pictures, to which they are cropped; None is fh×fw.

        Raises:
            InputError: the size is larger than fh×fw; latents of pictures in place of clips', or the other way round.
        """
        wanted = 4 if self.temporal == 1 else 5
        if latents.dim() != wanted:
            form = "B×C×h×w" if wanted == 4 else "B×C×T×h×w"
            raise InputError(f"the autoencoder decodes latents {form}, received {'×'.join(map(str, latents.shape))}.")
        height, width = (self.factor * side for side in latents.shape[-2:])
        if size is not None and (size[0] > height or size[1] > width):
            raise InputError(
                f"these latents are of a picture of at most {height}×{width}, but {size[0]}×{size[1]} was asked for."
            )
        latents = latents.to(next(self.network.parameters()).device)
        mean, deviation = self._statistics(latents)
        x = self._pieces(self._decoded, latents.float() * deviation + mean, (1, self.factor))
        return x if size is None else x[..., : size[0], : size[1]]

    def _moments_of(self, x: Tensor) -> Tensor:
        """Of the network's own latents."""
        network = self.network
        if isinstance(network, VAE):
            return network.encode(x).moments
        count, shape = self._frames(x), network.config.latent_shape(x.shape[1:])
        if count >= shape[1]:
            return network.encode(x).moments
        parts = (posterior.moments for posterior in network.encode_chunks(x, count))
        return _joined(parts, (len(x), 2 * shape[0], *shape[1:]))

    def _decoded(self, latents: Tensor) -> Tensor:
        """Of the network's own latents."""
        network, frames = self.network, latents.shape[2]
        if isinstance(network, VAE):
            return network.decode(latents)
        count, sides = self._frames(latents, self.factor), (self.factor * side for side in latents.shape[-2:])
        if count >= frames:
            return network.decode(latents)
        shape = (len(latents), network.config.channels or 0, 1 + self.temporal * (frames - 1), *sides)
        return _joined(network.decode_chunks(latents, count), shape)

    def _frames(self, x: Tensor, enlarged: int = 1) -> int:
        """Frames of latents in a chunk."""
        pixels = len(x) * x.shape[-2] * x.shape[-1] * enlarged**2
        return max(1, PIXELS_A_CALL // (pixels * self.temporal))

    def _pieces(self, function: Callable[[Tensor], Tensor], x: Tensor, cells: tuple[int, int]) -> Tensor:
        """function(x) in slices and tiles, float32; `cells`: sides of a latent in x and in the result."""
        dtype = next(self.network.parameters()).dtype
        enlarged = self.factor // cells[0]

        def few(part: Tensor) -> Tensor:
            pixels = part.shape[-2] * part.shape[-1] * enlarged**2
            if part.dim() == 5:
                pixels *= part.shape[2] if enlarged == 1 else 1 + self.temporal * (part.shape[2] - 1)
            return sliced(lambda rows: function(rows.to(dtype)).float(), part, max(1, PIXELS_A_CALL // pixels))

        if self.tile == 0:
            return few(x)
        return tiled(few, x, max(self.tile // self.factor, _SHORTEST_TILE), cells)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation to go with latents B×C′×…."""
        shape = (-1, *[1] * (like.dim() - 2))
        return self.mean.to(like.device).reshape(shape), self.deviation.to(like.device).reshape(shape)


def _joined(parts: Iterator[Tensor], shape: Sequence[int]) -> Tensor:
    """Parts along time, put where they belong as they come."""
    out, start = torch.empty(0), 0
    for part in parts:
        out = part.new_empty(tuple(shape)) if start == 0 else out
        out[:, :, start : start + part.shape[2]] = part
        start += part.shape[2]
    return out
