"""Densities from which training draws its times, stratified over a batch; and the time shift."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.config import TimesConfig


def shift(t: Tensor, s: float) -> Tensor:
    """t' = s·t/(1+(s−1)t), for s > 0; 1 is none. Equivalently logit t' = logit t + log s, λ' = λ − 2 log s."""
    return s * t / (1 + (s - 1) * t)


def size_shift(shape: Sequence[int]) -> float:
    """max(1, √(d/4096)) for the d elements of a sample of this shape: of two shapes above 4,096 the ratio is √(d₁/d₂).

    Neighbouring elements of smooth data are nearly equal, so the mean over a patch of them sees the noise divided by
    the root of their number (Esser et al. 2024, section 5.3.2).
    """
    return max(1.0, math.sqrt(math.prod(shape) / 4096))


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


@final
class Mode(TimeDensity):
    """t = u − s·(sin²(πu/2) − u) for uniform u (Esser et al. 2024, with u there 1−u here).

    Args:
        scale: s in [−1, 2/(π−2)], where t is monotone in u; 0 is uniform, above 0 favours the middle.
    """

    def __init__(self, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise InputError(f"the scale of mode times must lie in [-1, {2 / (math.pi - 2):.4f}], received {scale}.")
        self.scale = scale

    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u."""
        u = u.double()
        return u - self.scale * (torch.sin(math.pi / 2 * u) ** 2 - u)

    def density(self, t: Tensor) -> Tensor:
        """π(t) = 1/Q′(u), where Q(u) = t is solved by bisection."""
        t = t.double()
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(54):
            middle = (low + high) / 2
            below = self.quantile(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 1 / (1 + self.scale - self.scale * math.pi / 2 * torch.sin(math.pi * (low + high) / 2))


@final
class Shifted(TimeDensity):
    """The density of shift(t, s) for t of another density.

    Args:
        inner: density of t.
        shift_by: s > 0; 1 is none.
    """

    def __init__(self, inner: TimeDensity, shift_by: float) -> None:
        self.inner, self.shift_by = inner, shift_by

    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u."""
        return shift(self.inner.quantile(u), self.shift_by)

    def density(self, t: Tensor) -> Tensor:
        """π(t) = π₀(t₀)·dt₀/dt, t₀ = shift(t, 1/s)."""
        t, inverse = t.double(), 1 / self.shift_by
        return self.inner.density(shift(t, inverse)) * inverse / (1 + (inverse - 1) * t) ** 2


@final
class Discrete(TimeDensity):
    """t_1 … t_T alike, where t_i is the quantile i/T of another density: the steps of a chain.

    Args:
        inner: gives the times t_0 … t_T.
        count: T.
    """

    def __init__(self, inner: TimeDensity, count: int) -> None:
        self.inner, self.count = inner, count

    def quantile(self, u: Tensor) -> Tensor:
        """The t with P(T ≤ t) = u, up to the next of the times."""
        return self.inner.quantile(torch.ceil(u.double() * self.count) / self.count)

    def density(self, t: Tensor) -> Tensor:
        """π(t) of the inner density, to which this one tends as T grows."""
        return self.inner.density(t)

    def before(self, t: Tensor) -> Tensor:
        """Of the times t_i the t_(i−1); t_0 for what is below t_1."""
        times = self.inner.quantile(torch.arange(self.count + 1, dtype=torch.float64) / self.count)
        # Half a step of slack: t may have been moved a little into the path's range.
        middle = (times[1:] + times[:-1]) / 2
        return times[(torch.searchsorted(middle, t.double()) - 1).clamp(min=0)]


def time_density(config: TimesConfig, shift_by: float = 1.0) -> TimeDensity:
    """The density that `config` names, after the time shift s = `shift_by`."""
    match config.density:
        case "uniform":
            density: TimeDensity = Uniform()
        case "logit-normal":
            density = LogitNormal(config.mean, config.std)
        case "mode":
            density = Mode(config.scale)
        case "discrete":
            density = Uniform()
    density = density if shift_by == 1 else Shifted(density, shift_by)
    return Discrete(density, config.count) if config.density == "discrete" else density


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
