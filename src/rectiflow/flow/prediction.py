"""What a network predicts, as one 2×2 linear map.

Every quantity is a row over the basis (x, z): x_t is (α, β), the velocity (α′, β′), noise (0, 1), data (1, 0), the
score (0, −1/β). Two rows that are not parallel give every other one.
"""

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from rectiflow.flow.schedule import Coefficients, Schedule

_MARGIN = 1e-3
_LOSS_MARGIN = 0.05


class Prediction(StrEnum):
    """Velocity v = α′x + β′z, noise z, data x, or score ∇log p_t = −z/β (as posterior means given x_t)."""

    VELOCITY = "velocity"
    NOISE = "noise"
    DATA = "data"
    SCORE = "score"

    def row(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        """Weights of x and of z."""
        zero, one = torch.zeros_like(at.alpha), torch.ones_like(at.alpha)
        match self:
            case Prediction.VELOCITY:
                return at.alpha_dot, at.beta_dot
            case Prediction.NOISE:
                return zero, one
            case Prediction.DATA:
                return one, zero
            case Prediction.SCORE:
                return zero, -1 / at.beta

    def t_range(self, schedule: Schedule, margin: float = _MARGIN) -> tuple[float, float]:
        """Times at which this prediction and x_t together determine everything else.

        At t = 1 of a path that ends in pure noise, noise says nothing about the data; at t = 0, data says nothing about
        the noise. A velocity always does both.
        """
        low, high = schedule.inside(margin)
        return (
            low if self in (Prediction.DATA, Prediction.SCORE) else schedule.t_min,
            high if self in (Prediction.NOISE, Prediction.SCORE) else schedule.t_max,
        )

    def loss_t_range(self, schedule: Schedule) -> tuple[float, float]:
        """Times to which the conversion to a velocity is bounded in a loss (0.05 from an end where it diverges)."""
        return self.t_range(schedule, _LOSS_MARGIN)


class Conversion(NamedTuple):
    """`want` = from_x_t · x_t + from_value · value; coefficients of the shape of t."""

    from_x_t: Tensor
    from_value: Tensor


def conversion(have: Prediction, want: Prediction, at: Coefficients) -> Conversion:
    """Coefficients that turn (x_t, `have`) into `want`, by Cramer's rule.

    Args:
        have: the quantity held beside x_t.
        want: the quantity wanted.
        at: the schedule at t.
    """
    if have is want:
        return Conversion(torch.zeros_like(at.alpha), torch.ones_like(at.alpha))
    (a, b), (c, d) = have.row(at), want.row(at)
    determinant = at.alpha * b - at.beta * a
    return Conversion((c * b - d * a) / determinant, (at.alpha * d - at.beta * c) / determinant)
