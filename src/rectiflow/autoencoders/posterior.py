"""What an encoder says of a picture: a normal distribution of latents."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_LOG_VARIANCES = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """q(l|x) = N(m, s²), a diagonal normal distribution of each picture's latents.

    Args:
        mean: m, B×C×h×w.
        log_variance: log s², the same shape.
    """

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Self:
        """From moments B×2C×h×w: the means, then the log-variances, these clamped to [−30, 20]."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*_LOG_VARIANCES))

    @property
    def moments(self) -> Tensor:
        """Both, B×2C×h×w."""
        return torch.cat([self.mean, self.log_variance], dim=1)

    def sample(self, draw: Tensor) -> Tensor:
        """m + s·draw, for standard normal draws of the same shape."""
        return self.mean + (self.log_variance / 2).exp() * draw

    def divergence(self) -> Tensor:
        """KL(q ‖ N(0, 1)) of each element in nats: ½(m² + s² − 1 − log s²); the same shape."""
        return (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2
