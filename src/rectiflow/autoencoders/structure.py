"""How alike the structure of two pictures is, without any weights: SSIM, and finite differences over scales.

All of pictures B×C×H×W in [−1, 1]; computed in float32, or wider if given so, also where autocast is on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.base.errors import InputError

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
_SMALLEST = 4
_SCALES = 3


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair, B, in [−1, 1]; 1 for equal pictures (Wang et al. 2004, eq. 13).

    (2μ_a μ_b + C₁)(2σ_ab + C₂) / ((μ_a² + μ_b² + C₁)(σ_a² + σ_b² + C₂)) under a Gaussian window of 11×11 and deviation
    1.5, with K = .01 and .03 of the range 2; the mean over channels and positions whose window lies in the picture.
    Brightness is counted from black, x + 1, as the equation wants it: about grey the means of two nearly equal pictures
    may differ in sign. So it is the figure that others give for pictures in [0, 1] with a range of 1.
    Where the shorter side is under 11, the window is the largest odd square that fits, of the same deviation.

    Raises:
        InputError: shapes that differ or are not B×C×H×W, or a side under 2.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (x + 1 for x in _checked(a, b))
        batch, _, height, width = a.shape
        window = _gaussian(min(height, width), a)
        planes = torch.stack([a, b, a * a, b * b, a * b])  # 5×B×C×H×W
        mean_a, mean_b, square_a, square_b, product = _filtered(planes, window)
        both, squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
        luminance = (2 * both + _C1) / (squares + _C1)
        contrast = (2 * (product - both) + _C2) / (square_a + square_b - squares + _C2)
        return (luminance * contrast).reshape(batch, -1).mean(1)


def multiscale_ssim(a: Tensor, b: Tensor, scales: int = _SCALES) -> Tensor:
    """The mean of `ssim` over a pyramid of pictures, each level halved by averages of 2×2; B, in [−1, 1].

    A mean, not the product of powers of Wang et al. 2003, whose gradient is undefined where structures are opposed.
    Levels end before a side falls under 4 pixels.

    Raises:
        InputError: as of `ssim`, or fewer than one scale.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = _checked(a, b)
        levels = zip(_pyramid(a, scales), _pyramid(b, scales), strict=True)
        return torch.stack([ssim(*level) for level in levels]).mean(0)


def gradient_loss(a: Tensor, b: Tensor, scales: int = _SCALES) -> Tensor:
    """Mean |∂ₓ(a − b)| + mean |∂ᵧ(a − b)| by differences of neighbours, the mean over scales; B, ≥ 0.

    Scales are as of `multiscale_ssim`. A difference of plain brightness costs nothing.

    Raises:
        InputError: as of `multiscale_ssim`.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = _checked(a, b)
        found = [
            level.diff(dim=-1).abs().flatten(1).mean(1) + level.diff(dim=-2).abs().flatten(1).mean(1)
            for level in _pyramid(a - b, scales)
        ]
        return torch.stack(found).mean(0)


def structure_loss(a: Tensor, b: Tensor) -> Tensor:
    """`gradient_loss` + (1 − `multiscale_ssim`); B, ≥ 0, and 0 for equal pictures.

    As they are: of a blurred or noisy photograph both are about 0.1, and by pixels SSIM pulls 1.3 to 4 times as hard as
    the differences, which go on pulling where it is flat.

    Raises:
        InputError: as of `ssim`.
    """
    return gradient_loss(a, b) + (1 - multiscale_ssim(a, b))


def _gaussian(side: int, like: Tensor) -> Tensor:
    """Weights K of the largest odd window that fits a side, of sum 1."""
    size = min(_WINDOW, side - (side + 1) % 2)
    offset = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    weights = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


def _filtered(planes: Tensor, window: Tensor) -> Tensor:
    """Planes …×H×W under the window along both axes, at positions where it fits."""
    # Products with banded matrices: several times faster on a CPU than convolutions of single planes, and on a GPU they
    # are not rounded to TF32, which the differences of squares would not survive.
    down, across = (_band(window, side) for side in planes.shape[-2:])
    return down @ (planes @ across.T)


def _band(window: Tensor, side: int) -> Tensor:
    """The matrix (side−K+1)×side whose product with a line is the line under the window."""
    places = torch.arange(side - len(window) + 1, device=window.device)[:, None]
    band = window.new_zeros(len(places), side)
    return band.scatter(1, places + torch.arange(len(window), device=window.device), window.expand(len(places), -1))


def _pyramid(x: Tensor, scales: int) -> list[Tensor]:
    if scales < 1:
        raise InputError(f"expected at least one scale, received {scales}.")
    levels = [x]
    while len(levels) < scales and min(levels[-1].shape[-2:]) >= 2 * _SMALLEST:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 4 or a.shape != b.shape or min(a.shape[-2:]) < 2:
        raise InputError(
            f"expected two sets of pictures B×C×H×W of one shape, sides of at least 2; received {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide), b.to(wide)
