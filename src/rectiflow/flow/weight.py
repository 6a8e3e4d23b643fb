"""Weights of the loss over time, all related by one identity (Kingma & Gao 2023).

E_{t~π}[c(t)‖v − v̂‖²] = ½∫ w(λ) E‖z − ẑ‖² dλ with w(λ(t)) = π(t)·c(t)·W·β/α; w = 1 is the evidence lower bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.flow.flow import Flow
from rectiflow.flow.schedule import Schedule, schedule
from rectiflow.flow.times import Discrete, TimeDensity, time_density

_MARGIN = 1e-3


def log_snr_weight(path: Schedule, density: TimeDensity, weight: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """w(λ(t)) = π(t)·c(t)·W·β/α: what training with times of `density` π and the loss weight c amounts to."""
    at = path.at(t)
    return density.density(t) * weight(t) * at.wronskian * at.beta / at.alpha


@final
class LossWeight:
    """c(t) of c(t)·‖v − v̂‖².

    The kinds that define w(λ) have c = w·α/(π·W·β), so that times of any density weigh the log-SNRs alike: the density
    then only says where the samples are spent. Their c diverges where α, β or π vanish and is held at its value there,
    0.001 from the ends.

    Args:
        config: which kind.
        path: the schedule.
        density: π, of the times drawn.
        sigma_data: σ_d of the kind edm.
    """

    def __init__(self, config: WeightConfig, path: Schedule, density: TimeDensity, sigma_data: float = 0.5) -> None:
        self.config, self.path, self.density, self.sigma_data = config, path, density, sigma_data

    def __call__(self, t: Tensor) -> Tensor:
        """c(t), float64 of the shape of t."""
        t = t.double()
        at = self.path.at(t)
        match self.config.kind:
            case "velocity":
                return torch.ones_like(t)
            case "noise":
                return (at.alpha / at.wronskian) ** 2
            case "data":
                return (at.beta / at.wronskian) ** 2
        if self.config.kind == "elbo" and isinstance(self.density, Discrete):
            return self._discrete_bound(self.density, t)
        t = t.clamp(*self.path.inside(_MARGIN))
        unweighted = log_snr_weight(self.path, self.density, torch.ones_like, t)
        return self.of_log_snr(self.path.log_snr(t)) / unweighted

    def _discrete_bound(self, chain: Discrete, t: Tensor) -> Tensor:
        """T·½·expm1(λ_s − λ_t)·(α/W)² at the step t → s of the chain.

        The last step, to t_0, is the reconstruction by N(x; x̂, (β/α)²I), for which ½‖z − ẑ‖² is left (Ho et al. 2020).
        """
        t = t.clamp(*self.path.inside(_MARGIN))
        s, at = chain.before(t), self.path.at(t)
        last = s <= float(chain.before(torch.zeros((), dtype=torch.float64)))
        s = torch.where(last, t, s)
        gap = torch.where(last, 1.0, torch.expm1(self.path.log_snr(s) - self.path.log_snr(t)))
        return chain.count / 2 * gap * (at.alpha / at.wronskian) ** 2

    def of_log_snr(self, log_snr: Tensor) -> Tensor:
        """w(λ), for the kinds that define it."""
        config = self.config
        match config.kind:
            case "elbo":
                return torch.ones_like(log_snr)
            case "sigmoid":
                return torch.sigmoid(config.bias - log_snr)
            case "min-snr":
                return (config.gamma * torch.exp(-log_snr)).clamp(max=1) / torch.cosh(log_snr / 2)
            case "edm":
                normal = torch.exp(-((log_snr + 2 * config.mean) ** 2) / (8 * config.std**2))
                normal = normal / (2 * config.std * math.sqrt(2 * math.pi))
                return 2 * normal * (torch.exp(-log_snr) / self.sigma_data**2 + 1)
        raise AssertionError(config.kind)


def weighted_times(
    flow: Flow, times: TimesConfig, weight: WeightConfig, shape: Sequence[int]
) -> tuple[TimeDensity, LossWeight]:
    """The density of training times for samples of a shape (without the batch), and the loss weight that suits it."""
    density = time_density(times, flow.shift_for(shape))
    return density, LossWeight(weight, flow.schedule, density, flow.sigma_data)


def weight_at_log_snrs(flow: FlowConfig, times: TimesConfig, weight: WeightConfig) -> dict[str, float]:
    """w(λ)/w(0) at λ = −6, −3, 0, 3 and 6, under the settings of a run; a λ that its path never reaches is left out.

    Where the shift goes by the size of samples, for samples of at most 4,096 elements.
    """
    path, density = schedule(flow), time_density(times, flow.shift)
    low, high = path.log_snr_range
    log_snr = torch.tensor([at for at in (0.0, -6.0, -3.0, 3.0, 6.0) if at == 0 or low <= at <= high])
    loss_weight = LossWeight(weight, path, density, flow.sigma_data)
    w = log_snr_weight(path, density, loss_weight, path.time_of(log_snr))
    return {f"{at:g}": round(value, 6) for at, value in sorted(zip(log_snr.tolist(), (w / w[0]).tolist(), strict=True))}
