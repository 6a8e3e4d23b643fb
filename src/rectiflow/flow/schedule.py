"""Paths between data and noise: x_t = α(t)·x + β(t)·z, t = 0 clean, t = 1 the noisiest.

Times are float64 tensors (on the CPU, so that coefficients cost a device nothing); so is all that is computed here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.flow.config import FlowConfig


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
        scaled: whether x_t or the predicted quantities are far from unit size, so that a network needs both scaled.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    scaled: bool = False

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

    def inside(self, margin: float) -> tuple[float, float]:
        """Times away from the ends where x_t is pure data or pure noise; `margin` in (0, ½) is a distance in t."""
        return max(self.t_min, margin), min(self.t_max, 1 - margin)

    def _inside_by_noise(self, margin: float) -> tuple[float, float]:
        """Times at which β/(α+β) is in [margin, 1 − margin], as it is for the rectified path at a distance in t."""
        bound = 2 * math.log((1 - margin) / margin)
        low, high = self.time_of(torch.tensor([bound, -bound], dtype=torch.float64)).tolist()
        return low, high

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


@final
class Polynomial(Schedule):
    """α = 1−tⁿ, β = tⁿ: the rectified path at another pace (Lipman et al. 2024, "convex"). W = n·tⁿ⁻¹.

    W vanishes (n > 1) or diverges (n < 1) at t = 0, so there t ≥ 1e-5, or t ≥ 0.001^(1/n), where β = 0.001. For n < 1
    the velocity grows without bound towards t = 0: sample on a "log-snr" grid.

    Args:
        exponent: n > 0; 1 is the rectified path.
    """

    def __init__(self, exponent: float = 1.0) -> None:
        if not 0 < exponent < math.inf:
            raise InputError(
                f"the exponent of a polynomial path must be above 0 (1 is rectified), received {exponent}."
            )
        self.exponent = exponent
        if exponent != 1:
            self.t_min = 1e-5 if exponent > 1 else 1e-3 ** (1 / exponent)

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        beta, slope = t.double() ** self.exponent, self.exponent * t.double() ** (self.exponent - 1)
        return Coefficients(1 - beta, beta, -slope, slope)

    def inside(self, margin: float) -> tuple[float, float]:
        """Times at which β is in [margin, 1 − margin]."""
        return self._inside_by_noise(margin) if self.exponent != 1 else (margin, 1 - margin)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2) ** (1 / self.exponent)


@final
class VPLinear(Schedule):
    """α² = e^(−T), β² = 1 − α², T = bt + (B−b)t²/2, b = 0.1, B = 20: DDPM in continuous time (Song et al. 2021).

    α(1) = 0.0066: not quite pure noise. Near t = 0 the velocity grows as 1/√t, so t ≥ 1e-5, where β = 0.001.
    """

    t_min = 1e-5
    scaled = True
    _LOW, _HIGH = 0.1, 20.0

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        t, span = t.double(), self._HIGH - self._LOW
        total, rate = self._LOW * t + span / 2 * t**2, self._LOW + span * t
        alpha, beta = torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total))
        return Coefficients(alpha, beta, -rate / 2 * alpha, rate / 2 * alpha**2 / beta)

    def inside(self, margin: float) -> tuple[float, float]:
        """Times at which β/(α+β) is at least `margin`; x_t is never pure noise."""
        return self._inside_by_noise(margin)[0], self.t_max

    def _time_of(self, log_snr: Tensor) -> Tensor:
        total = torch.nn.functional.softplus(-log_snr.clamp(min=-1e3), threshold=700)
        # The root of the quadratic in the form that loses no digits for small T.
        return 2 * total / (self._LOW + torch.sqrt(self._LOW**2 + 2 * (self._HIGH - self._LOW) * total))


@final
class VE(Schedule):
    """α = 1, β = σ_min·(σ_max/σ_min)^t: variance exploding (Song et al. 2021; EDM, Karras et al. 2022).

    It equals the rectified path at t = σ/(1+σ), x_t = x_VE/(1+σ). Sampling starts from N(0, σ_max²I), ends at σ_min.

    Args:
        sigma_min: σ_min > 0.
        sigma_max: σ_max > σ_min.
    """

    scaled = True

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InputError(f"expected 0 < sigma_min < sigma_max, received {sigma_min} and {sigma_max}.")
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        beta = self.sigma_min * torch.exp(self.log_ratio * t.double())
        return Coefficients(torch.ones_like(beta), beta, torch.zeros_like(beta), self.log_ratio * beta)

    def inside(self, margin: float) -> tuple[float, float]:
        """Every time: x_t is never pure data nor pure noise."""
        return self.t_min, self.t_max

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.sigma_min)) / self.log_ratio


SCHEDULES: dict[str, Callable[[FlowConfig], Schedule]] = {
    "rectified": lambda config: Rectified(),
    "trig": lambda config: Trig(),
    "polynomial": lambda config: Polynomial(config.exponent),
    "vp-linear": lambda config: VPLinear(),
    "ve": lambda config: VE(config.sigma_min, config.sigma_max),
}


def schedule(config: FlowConfig) -> Schedule:
    """The schedule that `config` names."""
    return SCHEDULES[config.schedule](config)
