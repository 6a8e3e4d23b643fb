"""What z is drawn from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.coupling import coupling


class Source(ABC):
    """A distribution of z. Subclasses are final.

    Attributes:
        no_score: why score, SDE and Langevin steps are not valid; empty if z ~ N(0, I) independently of x.
    """

    no_score: str = ""

    @property
    def is_gaussian(self) -> bool:
        """Whether z ~ N(0, I) independently of x."""
        return not self.no_score

    @abstractmethod
    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32; member i of the batch depends on `key` and `index[i]` alone."""

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B (summed over all its dimensions)."""


@final
class Gaussian(Source):
    """The standard normal N(0, I).

    Args:
        no_score: why it is not independent of the data, if it is not.
    """

    def __init__(self, no_score: str = "") -> None:
        self.no_score = no_score

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32."""
        return key.normal(index, shape)

    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B."""
        return -0.5 * (z.flatten(1) ** 2 + math.log(2 * math.pi)).sum(1)


@final
class Uniform(Source):
    """Uniform on [−√3, √3] in each dimension: mean 0 and deviation 1, as the normal has."""

    no_score = "the source is uniform, not Gaussian"

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32."""
        return ((2 * key.uniform(index, shape) - 1) * math.sqrt(3)).float()

    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B; −∞ outside."""
        flat = z.flatten(1)
        inside = (flat.abs() <= math.sqrt(3)).all(1)
        value = -flat.shape[1] * math.log(2 * math.sqrt(3))
        return torch.where(inside, value, -math.inf).to(z.dtype)


def source(config: FlowConfig) -> Source:
    """The source that `config` names, with what its coupling makes invalid."""
    return Uniform() if config.source == "uniform" else Gaussian(coupling(config).no_score)
