"""A variance-preserving path that is known at a table of times."""

import math
from typing import final

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.flow.schedule import Coefficients, Schedule


@final
class Tabulated(Schedule):
    """α = cos θ, β = sin θ with θ known at t = 1/T, 2/T, …, 1 and 0 at t = 0; between them by a monotone cubic.

    α may be 0 at t = 1 ("zero terminal SNR").

    Args:
        alpha_squared: ᾱ_1 … ᾱ_T, the α² of the steps of a chain such as DDPM's, falling within [0, 1).

    Raises:
        InputError: fewer than two, or not falling.
    """

    def __init__(self, alpha_squared: Tensor) -> None:
        squared = alpha_squared.detach().cpu().double()
        if len(squared) < 2 or bool((squared.diff() >= 0).any()) or squared[-1] < 0 or squared[0] >= 1:
            raise InputError("expected two or more values of α² that fall from below 1 to 0 or above it.")
        angles = torch.cat([torch.zeros(1).double(), torch.atan2((1 - squared).sqrt(), squared.sqrt())])
        self._angle = PchipInterpolator(np.linspace(0, 1, len(angles)), angles.numpy())
        self._slope = self._angle.derivative()

    def at(self, t: Tensor) -> Coefficients:
        """α, β, α′, β′ at t."""
        angle, rate = self._value(self._angle, t), self.angle_dot(t)
        # The sine of the complement is exactly 0 at a right angle, where the cosine leaves 6e-17.
        alpha, beta = torch.sin(math.pi / 2 - angle), torch.sin(angle)
        return Coefficients(alpha, beta, -rate * beta, rate * alpha)

    def angle_dot(self, t: Tensor) -> Tensor:
        """θ′(t)."""
        return self._value(self._slope, t)

    def inside(self, margin: float) -> tuple[float, float]:
        """Times at which β/(α+β) is in [margin, 1 − margin]."""
        return self._inside_by_noise(margin)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        wanted = torch.atan(torch.exp(-log_snr / 2))
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(54):  # bisection, to the last bit: θ rises
            middle = (low + high) / 2
            below = self._value(self._angle, middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @staticmethod
    def _value(curve: PchipInterpolator, t: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(curve(t.double().numpy()))).reshape(t.shape)
