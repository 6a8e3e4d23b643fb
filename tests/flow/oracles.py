"""The exact problems of the mathematics' tests: a ring of Gaussians, its guided form, and 1024 dimensions."""

import math

import torch

from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.flow.schedule import VE, Polynomial, Rectified, Schedule, Trig, VPLinear

PATHS: dict[str, Schedule] = {
    "rectified": Rectified(),
    "trig": Trig(),
    "quadratic": Polynomial(2.0),
    "root": Polynomial(0.5),
    "vp-linear": VPLinear(),
    "ve": VE(),
}


def ring(schedule: Schedule | None = None) -> GaussianMixtureFlow:
    """Problem A: 8 Gaussians on a ring in the plane, unit variance per axis; label 0 is {0, 1} (problem G)."""
    std = 0.2
    radius = math.sqrt(2 * (1 - std**2))
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixtureFlow(means, std, classes=[[0, 1]], schedule=schedule)


def high_dimensional() -> GaussianMixtureFlow:
    """Problem H: 16 components in 1024 dimensions, which separate at high noise, as images do."""
    generator = torch.Generator().manual_seed(0)
    means = math.sqrt(1 - 0.09) * torch.randn(16, 1024, dtype=torch.float64, generator=generator)
    return GaussianMixtureFlow(means, 0.3)


def noise(count: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    """z ~ N(0, I), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, dtype=torch.float64, generator=generator)
