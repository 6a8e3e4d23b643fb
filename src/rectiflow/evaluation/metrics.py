"""Distances between two sets of features, and their bootstrap intervals. All in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.evaluation.distances import distance_blocks, row_blocks, to_neighbour


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval.

    Args:
        value: on all samples.
        low: 2.5 % of the resampled figures lie below.
        high: 2.5 % lie above.
    """

    value: float
    low: float
    high: float


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖μ₁−μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½) of features N×d and M×d (Heusel et al. 2017).

    Of a sample it is biased upwards by about c/N; compare sets of equal sizes alone. With N ≤ d a covariance lacks full
    rank: the distance is still defined, and a report says so.

    Raises:
        InputError: features of another width, or fewer than two samples.
    """
    a, b = _checked(a, b)
    means, covariances = (a.mean(0), b.mean(0)), (torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T))
    return gaussian_frechet(means[0], covariances[0], means[1], covariances[1].reshape(b.shape[1], -1))


def gaussian_frechet(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """The same of two Gaussians: means d, covariances d×d."""
    values, vectors = torch.linalg.eigh(covariance_1.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_2.double() @ root).clamp_min(0).sqrt().sum()
    distance = ((mean_1.double() - mean_2.double()) ** 2).sum()
    return max(0.0, float(distance + covariance_1.double().trace() + covariance_2.double().trace() - 2 * cross))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the unbiased squared MMD with the kernel (xᵀy/d + 1)³ (Bińkowski et al. 2018); it may be below 0.

    Raises:
        InputError: features of another width, or fewer than two samples.
    """
    a, b = _checked(a, b)

    same = [(_kernel_sum(x, x) - _kernel(x.square().sum(1), x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(same[0] + same[1] - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel(products: Tensor, like: Tensor) -> Tensor:
    """k(x, y) of the products xᵀy of features N×d."""
    return (products / like.shape[1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Σ k(xᵢ, yⱼ), whose matrix is never held."""
    parts = [_kernel(x[rows] @ y.T, x).sum() for rows in row_blocks(len(x), len(y))]
    return torch.stack(parts).sum()


@dataclass(frozen=True)
class Manifold:
    """How two sets cover each other, by the balls around each sample that reach its k-th neighbour.

    Args:
        precision: share of made samples within a ball of a real one (Kynkäänniemi et al. 2019).
        recall: share of real samples within a ball of a made one.
        density: balls of real samples that a made one lies in, over k (Naeem et al. 2020); about 1 for equal laws.
        coverage: share of real samples whose ball holds a made one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(made: Tensor, real: Tensor, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage of made samples N×d beside real ones M×d.

    Raises:
        InputError: features of another width, or no more than k samples.
    """
    made, real = _checked(made, real)
    if min(len(made), len(real)) <= k:
        raise InputError(f"neighbours to the {k}-th need more than {k} samples, received {len(made)} and {len(real)}.")
    of_real, of_made = (to_neighbour(points, k) for points in (real, made))
    balls = np.zeros(len(made))  # of real samples that each made one lies in
    recalled, covered = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, between in distance_blocks(made, real):
        inside = between <= of_real
        balls[rows] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (between <= of_made[rows, None]).any(0)
    return Manifold(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def told_apart(made: Tensor, real: Tensor, seed: int = 0) -> Interval:
    """Accuracy of the best of three classifiers that tell made samples from real ones, cross-validated and balanced.

    ½ means that none can. The interval is that of the best one's share of right answers; choosing the best of three
    raises the figure by about its half-width.

    Raises:
        InputError: features of another width, or fewer than ten samples on a side.
    """
    made, real = _checked(made, real)
    count = min(len(made), len(real))
    if count < 10:
        raise InputError(f"a classifier needs at least 10 samples on each side, received {count}.")
    order = np.random.default_rng(seed)
    x = np.concatenate([side.numpy()[order.permutation(len(side))[:count]] for side in (made, real)])
    y = np.repeat([0, 1], count)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    judges = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        make_pipeline(StandardScaler(), SVC(C=3)),
        HistGradientBoostingClassifier(max_iter=100, random_state=seed),
    )
    right = max(((cross_val_predict(judge, x, y, cv=folds) == y) for judge in judges), key=lambda found: found.mean())
    value, half = float(right.mean()), 1.96 * float(right.std()) / len(right) ** 0.5
    return Interval(value, value - half, value + half)


def bootstrap(
    figure: Callable[[Tensor, Tensor], float], made: Tensor, real: Tensor, resamples: int = 20, seed: int = 0
) -> Interval:
    """A figure of made samples beside real ones, with the interval over resampled made samples.

    A Fréchet distance grows when samples repeat, so the interval is centred: the spread of the resampled figures is
    laid around the figure itself.
    """
    value, draws = figure(made, real), np.random.default_rng(seed)
    found = [figure(made[torch.from_numpy(draws.integers(len(made), size=len(made)))], real) for _ in range(resamples)]
    low, middle, high = np.quantile(found, [0.025, 0.5, 0.975])
    return Interval(value, float(value + low - middle), float(value + high - middle))


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"expected features of one width, N×d and M×d; received {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if min(len(a), len(b)) < 2:
        raise InputError(f"expected at least 2 samples on each side, received {len(a)} and {len(b)}.")
    return a.double(), b.double()
