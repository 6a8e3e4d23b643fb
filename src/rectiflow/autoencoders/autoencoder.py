"""The interface of autoencoders, and the one that changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor


class Autoencoder(ABC):
    """Maps pictures to normalised latents and back. Subclasses are final."""

    @abstractmethod
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latents of one picture of shape C×H×W."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Pictures in [−1, 1], B×C×H×W, to latents of about zero mean and unit deviation."""

    @abstractmethod
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Latents to pictures, B×C×H×W, in about [−1, 1], cropped to `size` (H, W) if that is given."""


@final
class Identity(Autoencoder):
    """Pixel space: the latents are the picture."""

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The same shape."""
        return tuple(shape)

    def encode(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The same tensor."""
        return latents
