"""Runge-Kutta with a step size that a tolerance decides, for each sample its own."""

from typing import final

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.flow.flow import expand
from rectiflow.sampling.method import Field, History, Solver, combine

# Dormand & Prince 1980: the last row is also b of order 5; E = b of order 5 − b of order 4.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 5.0
_SMALLEST = 1e-6


@final
class DormandPrince(Solver):
    """RK45 of Dormand & Prince with a PI controller; each sample has its own time and step size.

    So no sample depends on the batch it is in. Between two times of the grid it takes as many steps as it needs; the
    whole batch is evaluated until its last sample is there.

    Args:
        tolerance: bound on the root mean square of (error of a step)/(1 + |x|), in (0, 1).

    Raises:
        InputError: a tolerance outside (0, 1), or one that the precision or the flow does not reach.
    """

    order = 5
    evaluations = 0

    def __init__(self, tolerance: float = 1e-5) -> None:
        if not 0 < tolerance < 1:
            raise InputError(f"rk45's tolerance lies between 0 and 1 (1e-5 is usual), received {tolerance:g}.")
        self.tolerance = tolerance

    def step(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor, history: History) -> tuple[Tensor, History]:
        """March from t to s; the history holds the size of the next step of each sample and its last error."""
        end = float(s)
        now = t.expand(len(x_t)).clone()
        slope = field(x_t, now).velocity
        size, last = history or (self._first(x_t, slope), torch.ones(len(x_t), dtype=torch.float64))
        x = x_t
        while bool((active := now > end).any()):
            length = torch.minimum(size, now - end)
            x_new, slope_new, error = self._try(field, x, slope, now, length)
            accepted = active & (error <= 1)
            if bool((active & ~accepted & (length < _SMALLEST)).any()):
                raise InputError(
                    f"rk45 does not reach tolerance {self.tolerance:g} in {x.dtype}; ask for a greater one."
                )
            rows = accepted.to(x.device).reshape(-1, *[1] * (x.dim() - 1))
            x, slope = torch.where(rows, x_new, x), torch.where(rows, slope_new, slope)
            now = torch.where(accepted, torch.where(length < now - end, now - length, end), now)
            factor = _SAFETY * error.clamp(min=1e-8) ** (-0.7 / 5) * last ** (0.4 / 5)
            factor = torch.where(accepted, factor, _SAFETY * error ** (-1 / 5)).clamp(_LEAST, _MOST)
            # A step cut short by the end of the interval says nothing against a longer one.
            proposed = torch.where(accepted, torch.maximum(length * factor, size * (length < size)), length * factor)
            size = torch.where(active, proposed, size)
            last = torch.where(accepted, error.clamp(min=1e-4), last)
        return x, (size, last)

    def _try(
        self, field: Field, x: Tensor, slope: Tensor, now: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state one step on, its slope, and the error in units of the tolerance (float64 B)."""
        slopes, h = [slope], -expand(length, x)
        for row, node in zip(_STAGES, _NODES, strict=True):
            x_new = x + h * combine(row, slopes)
            slopes.append(field(x_new, now - node * length).velocity)
        scale = self.tolerance * (1 + torch.maximum(x.abs(), x_new.abs()))
        error = _size(h * combine(_ERROR, slopes) / scale)
        return x_new, slopes[-1], torch.where(error.isfinite(), error, torch.inf)

    def _first(self, x: Tensor, slope: Tensor) -> Tensor:
        """A hundredth of the time in which x would change by its size (Hairer, Nørsett & Wanner, II.4)."""
        scale = 1 + x.abs()
        return (0.01 * _size(x / scale) / _size(slope / scale).clamp(min=1e-5)).clamp(1e-4, 0.1)


def _size(x: Tensor) -> Tensor:
    """Root mean square of each sample, float64 B, on the CPU."""
    return x.double().flatten(1).square().mean(1).sqrt().cpu()
