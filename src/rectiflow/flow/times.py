"""Densities from which training draws its times, stratified over a batch; and the time shift."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.flow.config import TimesConfig


def shift(t: Tensor, s: float) -> Tensor:
    """t' = s·t/(1+(s−1)t), for s > 0; 1 is none. Equivalently logit t' = logit t + log s, λ' = λ − 2 log s."""
    return s * t / (1 + (s - 1) * t)


class TimeDensity(ABC):
    """A density π on [0, 1], given with its quantile function. Subclasses are final."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u, for u in (0, 1); float64."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """π(t); float64."""


@final
class Uniform(TimeDensity):
    """π(t) = 1: the textbook's."""

    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u."""
        return u.double()

    def density(self, t: Tensor) -> Tensor:
        """π(t) = 1."""
        return torch.ones_like(t, dtype=torch.float64)


@final
class LogitNormal(TimeDensity):
    """logit(t) ~ N(mean, std²) (Esser et al. 2024, where (0, 1) ranked first).

    Args:
        mean: of logit(t); 0 is symmetric, above 0 leans to noise.
        std: of logit(t), > 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double()))

    def density(self, t: Tensor) -> Tensor:
        """π(t) = N(logit t; mean, std²)/(t(1−t))."""
        t = t.double()
        normal = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-(normal**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))


def time_density(config: TimesConfig) -> TimeDensity:
    """The density that `config` names."""
    return Uniform() if config.density == "uniform" else LogitNormal(config.mean, config.std)


def stratified(density: TimeDensity, key: Key, position: Tensor, count: int) -> Tensor:
    """One t for each of the batch's positions (int64), evenly spread: quantile((u₀ + i/count) mod 1).

    Kingma et al. 2021, "Variational diffusion models", appendix I.1: each t still has density π, and the mean over the
    batch has less variance than with independent draws.

    Args:
        density: π.
        key: names the draw of u₀; the same for the whole (global) batch.
        position: positions in the global batch, 0 … count−1.
        count: size of the global batch.
    """
    u_0 = key.uniform(torch.zeros(1, dtype=torch.int64))
    return density.quantile(((u_0 + position / count) % 1.0).clamp(1e-9, 1 - 1e-9))
