"""Paths between data and noise: x_t = α(t)·x + β(t)·z, t = 0 clean, t = 1 the noisiest.

Times are float64 tensors (on the CPU, so that coefficients cost a device nothing); so is all that is computed here.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor

from rectiflow.base.errors import unknown


class Coefficients(NamedTuple):
    """α, β and their derivatives by t, each of the shape of t."""

    alpha: Tensor
    beta: Tensor
    alpha_dot: Tensor
    beta_dot: Tensor

    @property
    def wronskian(self) -> Tensor:
        """W = αβ′ − α′β > 0: the determinant of (x, z) → (x_t, v)."""
        return self.alpha * self.beta_dot - self.alpha_dot * self.beta


class Schedule(ABC):
    """A path. Subclasses are final and give α, β, α′, β′ and the inverse of the log-SNR.

    Attributes:
        t_min: least t that the path is used at.
        t_max: greatest t that the path is used at.
    """

    t_min: float = 0.0
    t_max: float = 1.0

    @abstractmethod
    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""

    @abstractmethod
    def _time_of(self, log_snr: Tensor) -> Tensor: ...

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = log(α²/β²): +∞ at clean data, −∞ at pure noise."""
        alpha, beta, _, _ = self.at(t)
        return 2 * (alpha.log() - beta.log())

    def log_snr_dot(self, t: Tensor) -> Tensor:
        """λ′(t) = −2W/(αβ)."""
        at = self.at(t)
        return -2 * at.wronskian / (at.alpha * at.beta)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR is λ; a λ outside the schedule's range gives the nearer end."""
        return self._time_of(log_snr.double()).clamp(self.t_min, self.t_max)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(λ at t_max, λ at t_min): least and greatest log-SNR."""
        low, high = self.log_snr(torch.tensor([self.t_max, self.t_min], dtype=torch.float64)).tolist()
        return low, high

    @property
    def prior_std(self) -> float:
        """β(t_max): standard deviation of what sampling starts from, for a source of unit deviation."""
        return float(self.at(torch.tensor(self.t_max, dtype=torch.float64)).beta)


@final
class Rectified(Schedule):
    """α = 1−t, β = t, v = z − x: rectified flow (Liu, Gong & Liu 2022; Lipman et al. 2022 with σ_min = 0). W = 1."""

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        t = t.double()
        return Coefficients(1 - t, t, torch.full_like(t, -1), torch.ones_like(t))

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@final
class Trig(Schedule):
    """α = cos(πt/2), β = sin(πt/2): variance preserving ("cosine", GVP, TrigFlow). W = π/2."""

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        angle = math.pi / 2 * t.double()
        # The sine of the complement is exactly 0 at t=1, where the cosine leaves 6e-17.
        cos, sin = torch.sin(math.pi / 2 * (1 - t.double())), torch.sin(angle)
        return Coefficients(cos, sin, -math.pi / 2 * sin, math.pi / 2 * cos)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))


SCHEDULES: dict[str, type[Schedule]] = {"rectified": Rectified, "trig": Trig}


def schedule(name: str) -> Schedule:
    """The schedule of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name]()
