"""What z is drawn from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor

from rectiflow.base.randomness import Key


class Source(ABC):
    """A distribution of z. Subclasses are final.

    Attributes:
        is_gaussian: whether z ~ N(0, I) independently of x: only then are score, SDE and Langevin steps valid.
    """

    is_gaussian: bool

    @abstractmethod
    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32; member i of the batch depends on `key` and `index[i]` alone."""

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B (summed over all its dimensions)."""


@final
class Gaussian(Source):
    """The standard normal N(0, I)."""

    is_gaussian = True

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32."""
        return key.normal(index, shape)

    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B."""
        return -0.5 * (z.flatten(1) ** 2 + math.log(2 * math.pi)).sum(1)
