"""The latents of an autoencoder as a flow sees them: zero mean and unit deviation, for pictures of any size."""

from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.autoencoders.autoencoder import Autoencoder
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.tiling import sliced, tiled
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError

PIXELS_A_CALL = 2**20  # four pictures of 512×512; activations are what fills the memory
_SHORTEST_TILE = 4  # in latents: a quarter of it, the overlap, is then one


@final
class LatentSpace(Autoencoder):
    """A frozen VAE whose latents are normalised per channel: (l − mean) / deviation. Nobody else scales them.

    A batch goes through the network in parts of at most 2²⁰ pixels, or picture by picture, and a picture of a side
    longer than `tile` as overlapping tiles that are blended linearly. Slices change nothing. Tiles do: norms and
    attention see one tile in place of the picture.

    Args:
        network: the VAE.
        mean: C′, of each latent channel; None is 0.
        deviation: C′ > 0, of each latent channel; None is 1.
        tile: longest side of a tile in pixels, in whole latents and at least four of them; 0: never in tiles.

    Raises:
        InputError: statistics of another shape, or not finite; a deviation that is not positive; a negative tile.
    """

    def __init__(
        self, network: VAE, mean: Tensor | None = None, deviation: Tensor | None = None, tile: int = 512
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

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """C′×⌈H/f⌉×⌈W/f⌉."""
        return (self.network.config.latent_channels, *(-(-side // self.factor) for side in shape[-2:]))

    def check(self, shape: Sequence[int]) -> None:
        """Nothing, if pictures of shape C×H×W can be encoded.

        Raises:
            InputError: a side shorter than f, or other channels than the autoencoder's.
        """
        channels, height, width = shape
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

        Pictures whose sides f does not divide are continued by their last row and column. They may lie on any device.

        Raises:
            InputError: a side shorter than f, or other channels than the autoencoder's.
        """
        self.check(x.shape[-3:])
        x = x.to(next(self.network.parameters()).device)
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        moments = self._pieces(lambda part: self.network.encode(part).moments, padded, (self.factor, 1))
        mean, deviation = self._statistics(x.device)
        means, log_variances = moments.chunk(2, dim=1)
        return Posterior((means - mean) / deviation, log_variances - 2 * deviation.log()).moments

    def encode(self, x: Tensor) -> Tensor:
        """The means of the normalised latents of pictures B×C×H×W in [−1, 1]: B×C′×h×w, float32.

        Raises:
            InputError: a side shorter than f.
        """
        return self.moments(x).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Pictures in about [−1, 1] of normalised latents B×C′×h×w, float32.

        Args:
            latents: B×C′×h×w.
            size: H, W of the pictures, to which they are cropped; None is fh×fw.

        Raises:
            InputError: the size is larger than fh×fw.
        """
        height, width = (self.factor * side for side in latents.shape[-2:])
        if size is not None and (size[0] > height or size[1] > width):
            raise InputError(
                f"these latents are of a picture of at most {height}×{width}, but {size[0]}×{size[1]} was asked for."
            )
        latents = latents.to(next(self.network.parameters()).device)
        mean, deviation = self._statistics(latents.device)
        x = self._pieces(self.network.decode, latents.float() * deviation + mean, (1, self.factor))
        return x if size is None else x[..., : size[0], : size[1]]

    def _pieces(self, function: Callable[[Tensor], Tensor], x: Tensor, cells: tuple[int, int]) -> Tensor:
        """function(x) in slices and tiles, float32; `cells`: sides of a latent in x and in the result."""
        dtype = next(self.network.parameters()).dtype
        enlarged = self.factor // cells[0]

        def few(part: Tensor) -> Tensor:
            pixels = part.shape[-2] * part.shape[-1] * enlarged**2
            return sliced(lambda rows: function(rows.to(dtype)).float(), part, max(1, PIXELS_A_CALL // pixels))

        if self.tile == 0:
            return few(x)
        return tiled(few, x, max(self.tile // self.factor, _SHORTEST_TILE), cells)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.mean.to(device)[:, None, None], self.deviation.to(device)[:, None, None]
