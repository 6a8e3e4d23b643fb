"""What z is drawn from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
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


@final
class Mixture(Source):
    """Equal parts of K normals, N(μ_k, s²I) each: islands to start from, by default of deviation 1 in all.

    Args:
        components: K ≥ 1.
        std: s in (0, 1).
        means: μ, K×shape; if left out, draws of N(0, (1−s²)I), the same for every seed of the model.

    Raises:
        InputError: no components, an s outside (0, 1), or means of another number.
    """

    no_score = "the source is a mixture, not one Gaussian"

    def __init__(self, components: int = 8, std: float = 0.5, means: Tensor | None = None) -> None:
        if components < 1 or not 0 < std < 1:
            raise InputError(
                f"a mixture needs components ≥ 1 and a deviation in (0, 1), received {components} and {std}."
            )
        if means is not None and len(means) != components:
            raise InputError(f"expected a mean for each of {components} components, received {len(means)}.")
        self.components, self.std, self.means = components, std, means

    def centres(self, shape: Sequence[int]) -> Tensor:
        """μ, K×shape float32."""
        if self.means is not None:
            return self.means.float()
        drawn = Key(0, "source mixture").normal(torch.arange(self.components), shape)
        return drawn * math.sqrt(1 - self.std**2)

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32."""
        chosen = Key(key.seed, f"{key.purpose} component", key.step).words(index, 1)[:, 0] % self.components
        return self.centres(shape)[chosen] + self.std * key.normal(index, shape)

    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B."""
        centres = self.centres(z.shape[1:]).flatten(1).to(z)
        distance = (z.flatten(1)[:, None] - centres).square().sum(-1) / self.std**2
        each = -0.5 * (distance + centres.shape[1] * math.log(2 * math.pi * self.std**2))
        return torch.logsumexp(each, dim=1) - math.log(self.components)


@final
class Pictures(Source):
    """Other pictures: the flow is then a bridge from one set of pictures to another.

    Args:
        fetch: the pictures at an index (int64 B), B×…, as the network sees data; None if they are not at hand, as in a
            model that was just loaded.
        count: how many there are.
    """

    no_score = "the source is a set of pictures, not Gaussian"

    def __init__(self, fetch: Callable[[Tensor], Tensor] | None = None, count: int = 0) -> None:
        self.fetch, self.count = fetch, count

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32.

        Raises:
            InputError: no pictures are at hand, or they have another shape.
        """
        return self.at(key.words(index, 1)[:, 0], shape)

    def at(self, index: Tensor, shape: Sequence[int]) -> Tensor:
        """The pictures at `index` (int64 B, counted round), B×shape float32.

        Raises:
            InputError: no pictures are at hand, or they have another shape.
        """
        if self.fetch is None or not self.count:
            raise InputError("this model starts from pictures, not from noise; give them: --source DIR.")
        z = self.fetch(index % self.count)
        if z.shape[1:] != torch.Size(shape):
            raise InputError(f"expected source pictures of {tuple(shape)}, received {tuple(z.shape[1:])}.")
        return z

    def log_density(self, z: Tensor) -> Tensor:
        """Unknown.

        Raises:
            InputError: always.
        """
        raise InputError("no likelihood: the density of the pictures that this model starts from is unknown.")


def source(config: FlowConfig) -> Source:
    """The source that `config` names, with what its coupling makes invalid."""
    match config.source:
        case "uniform":
            return Uniform()
        case "mixture":
            return Mixture(config.source_components, config.source_std)
        case "pictures":
            return Pictures()
    return Gaussian(coupling(config).no_score)
