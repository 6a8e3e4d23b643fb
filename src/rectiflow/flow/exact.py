"""Exact oracles: flows whose data are Gaussian or a Gaussian mixture, in closed form."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.flow.flow import AbstractFlow, Estimate, expand
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Rectified, Schedule
from rectiflow.flow.source import Gaussian


@final
class GaussianFlow(AbstractFlow):
    """Data x ~ N(m, s²I). With ς² = α²s² + β²: v = α′m + (ς′/ς)(x_t − αm).

    Args:
        mean: m, of one sample's shape.
        std: s > 0.
        schedule: the path; rectified if left out.
    """

    def __init__(self, mean: Tensor, std: float, schedule: Schedule | None = None) -> None:
        self.mean, self.std = mean, std
        self.schedule = schedule or Rectified()
        self.source = Gaussian()

    def _spread(self, t: Tensor) -> tuple[Tensor, Tensor]:
        at = self.schedule.at(t)
        spread = (at.alpha**2 * self.std**2 + at.beta**2).sqrt()
        return spread, (at.alpha * at.alpha_dot * self.std**2 + at.beta * at.beta_dot) / spread

    def estimate(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """The exact velocity, or with `s` the exact average velocity from t to s."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if s is not None:
            end = torch.as_tensor(s, dtype=torch.float64)
            value = (x_t - self.flow_map(x_t, t, end)) / expand(t - end, x_t)
            return Estimate(x_t, t, value, Prediction.VELOCITY, self.schedule, average_to=float(s))
        at = self.schedule.at(t)
        spread, spread_dot = self._spread(t)
        centred = x_t - expand(at.alpha, x_t) * self.mean.to(x_t)
        value = expand(at.alpha_dot, x_t) * self.mean.to(x_t) + expand(spread_dot / spread, x_t) * centred
        return Estimate(x_t, t, value, Prediction.VELOCITY, self.schedule)

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the exact trajectory through x_t at t is at s: α_s m + (ς_s/ς_t)(x_t − α_t m)."""
        alpha_t, alpha_s = self.schedule.at(t).alpha, self.schedule.at(s).alpha
        ratio = self._spread(s)[0] / self._spread(t)[0]
        mean = self.mean.to(x_t)
        return expand(alpha_s, x_t) * mean + expand(ratio, x_t) * (x_t - expand(alpha_t, x_t) * mean)

    def divergence(self, t: Tensor) -> Tensor:
        """div v = d·ς′/ς, the same at every x_t; d the number of dimensions."""
        spread, spread_dot = self._spread(t)
        return self.mean.numel() * spread_dot / spread


@final
class GaussianMixtureFlow(AbstractFlow):
    """Data x ~ Σ π_k N(μ_k, s_k²I), with classes that are subsets of the components.

    With ς_k² = α²s_k² + β² and responsibilities r_k ∝ π_k N(x_t; αμ_k, ς_k²I):
    x̂ = Σ r_k(μ_k + (αs_k²/ς_k²)(x_t − αμ_k)), ẑ = Σ r_k(β/ς_k²)(x_t − αμ_k), v = α′x̂ + β′ẑ.

    Args:
        means: μ, K×d.
        std: s, one number or K.
        weights: π, K; equal if left out.
        classes: for each label the indices of its components; one component a label if left out.
        schedule: the path; rectified if left out.
    """

    def __init__(
        self,
        means: Tensor,
        std: Tensor | float,
        weights: Tensor | None = None,
        classes: Sequence[Sequence[int]] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        count = len(means)
        self.means = means.double()
        self.variance = torch.as_tensor(std, dtype=torch.float64).expand(count) ** 2
        weights = torch.ones(count) if weights is None else weights
        self.log_weights = (weights.double() / weights.double().sum()).log()
        self.classes = [[k] for k in range(count)] if classes is None else [list(members) for members in classes]
        self.schedule = schedule or Rectified()
        self.source = Gaussian()

    def _log_prior(self, condition: Condition | None, count: int) -> Tensor:
        if condition is None:
            return self.log_weights.expand(count, -1)
        table = torch.full((len(self.classes) + 1, len(self.means)), -torch.inf, dtype=torch.float64)
        for label, members in enumerate(self.classes):
            table[label, members] = self.log_weights[members]
        table[-1] = self.log_weights  # label −1 is the null condition: every component
        return torch.log_softmax(table, dim=1)[condition.labels]

    def _joint(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor, Tensor]:
        at = self.schedule.at(t)
        alpha, beta = at.alpha.reshape(-1, 1), at.beta.reshape(-1, 1)
        centred = x_t.double()[:, None] - alpha[..., None] * self.means  # B×K×d
        variance = alpha**2 * self.variance + beta**2  # B×K
        log_joint = self._log_prior(condition, len(x_t)) - (centred**2).sum(-1) / (2 * variance)
        return log_joint - self.means.shape[1] / 2 * (2 * torch.pi * variance).log(), centred, variance

    def estimate(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """The exact velocity at x_t, B×d."""
        if s is not None:
            raise NotImplementedError("a mixture has no closed form for the average velocity; leave out s.")
        t = torch.as_tensor(t, dtype=torch.float64)
        at = self.schedule.at(t)
        log_joint, centred, variance = self._joint(x_t, t, condition)
        weighted = (torch.softmax(log_joint, dim=1) / variance)[..., None] * centred  # r_k(x_t − αμ_k)/ς_k²
        responsibility = torch.softmax(log_joint, dim=1)
        alpha, beta = at.alpha.reshape(-1, 1), at.beta.reshape(-1, 1)
        data = responsibility @ self.means + alpha * (self.variance[:, None] * weighted).sum(1)
        noise = beta * weighted.sum(1)
        value = at.alpha_dot.reshape(-1, 1) * data + at.beta_dot.reshape(-1, 1) * noise
        return Estimate(x_t, t, value.to(x_t.dtype), Prediction.VELOCITY, self.schedule)

    def log_density(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """log p_t(x_t) in nats, B."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.logsumexp(self._joint(x_t, t, condition)[0], dim=1)
