"""The model as one of latent variables: the variational bound on −log p(x), term by term.

−log p(x) ≤ prior + diffusion + reconstruction (Kingma et al. 2021, "Variational diffusion models"), over log-SNRs from
λ_low (noise) to λ_high (data):
prior = KL(q(x_low|x) ‖ N(0, I)), in the frame where α² + β² = 1;
diffusion = ½ ∫ E‖z − ẑ‖² dλ, or, with T steps evenly spaced in λ by Δ, ½ Σ (e^Δ − 1) E‖z − ẑ‖²;
reconstruction = −E log p(x | x_high), by N(x; x_high/α, e^(−λ_high)), over the levels of the data if they have any.
Only log-SNRs matter, so that every path has the same bound, and a network's ẑ is asked at the t of its own path.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import AbstractFlow, expand


@dataclass(frozen=True)
class BoundConfig:
    """How the bound is taken.

    Args:
        steps: T of the discrete bound; 0 is the continuous one.
        draws: pairs (λ, z) for each sample, stratified over λ.
        log_snr: (λ_low, λ_high); what lies outside the schedule's range is moved to its end.
        levels: L, if the data are levels 2i/(L−1) − 1: the bound is then of their probability; 0 is of the density.
        seed: sample i's draws depend on (seed, i) alone.
    """

    steps: int = 0
    draws: int = 64
    log_snr: tuple[float, float] = (-14.0, 16.0)
    levels: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Bound:
    """The three terms of the bound on −log p of B samples of d dimensions, in nats.

    Args:
        prior: B.
        diffusion: B.
        reconstruction: B.
        error: B, standard error of the diffusion term by its draws.
        dimensions: d.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    error: Tensor
    dimensions: int

    @property
    def nats(self) -> Tensor:
        """The bound on −log p, B."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension, B; of the levels if the data were declared to have any."""
        return self.nats / (self.dimensions * math.log(2))


def variational_bound(
    flow: AbstractFlow,
    x: Tensor,
    condition: Condition | None = None,
    config: BoundConfig | None = None,
    index: Tensor | None = None,
) -> Bound:
    """The bound on −log p(x).

    Args:
        flow: any flow with a Gaussian source.
        x: data, B×….
        condition: B conditions; None is the null condition.
        config: how; the continuous bound with 64 draws if left out.
        index: int64 B, global indices of the samples, which their draws depend on; 0 … B−1 if left out.

    Raises:
        InputError: another source, log-SNRs out of order, or fewer than two draws.
    """
    config = config or BoundConfig()
    if not flow.source.is_gaussian:
        raise InputError("no variational bound: it needs a Gaussian source; ask for the likelihood of the ODE instead.")
    if config.draws < 2 or config.steps < 0:
        raise InputError(f"expected draws ≥ 2 and steps ≥ 0, received {config.draws} and {config.steps}.")
    low, high = _range(flow, config)
    index = torch.arange(len(x)) if index is None else index
    with torch.no_grad():
        losses = torch.stack(
            [_term(flow, x, condition, config, (low, high), draw, index) for draw in range(config.draws)]
        )
        alpha2, beta2 = (torch.sigmoid(torch.tensor(sign * low, dtype=torch.float64)) for sign in (1, -1))
        prior = 0.5 * (alpha2 * x.double() ** 2 + beta2 - 1 - beta2.log()).flatten(1).sum(1)
        return Bound(
            prior,
            losses.mean(0),
            _reconstruction(x, high, config, index).to(x.device),
            losses.std(0) / config.draws**0.5,
            x[0].numel(),
        )


def _range(flow: AbstractFlow, config: BoundConfig) -> tuple[float, float]:
    least, greatest = flow.schedule.log_snr_range
    low, high = max(config.log_snr[0], least), min(config.log_snr[1], greatest)
    if not low < high:
        raise InputError(
            f"expected log-SNRs (low, high) that meet [{least:g}, {greatest:g}], received {config.log_snr}."
        )
    return low, high


def _term(
    flow: AbstractFlow,
    x: Tensor,
    condition: Condition | None,
    config: BoundConfig,
    ends: tuple[float, float],
    draw: int,
    index: Tensor,
) -> Tensor:
    """One draw of the diffusion term, B."""
    low, high = ends
    key = Key(config.seed, "bound time", draw)
    u = (draw + key.uniform(index).double()) / config.draws  # stratified: draw k lies in the k-th part of the range
    if config.steps:
        # The noisier end of a random one of the T intervals.
        weight = 0.5 * config.steps * math.expm1((high - low) / config.steps)
        log_snr = low + (high - low) * (u * config.steps).floor() / config.steps
    else:
        weight, log_snr = 0.5 * (high - low), low + (high - low) * u
    t = flow.schedule.time_of(log_snr)
    at = flow.schedule.at(t)
    z = Key(config.seed, "bound noise", draw).normal(index, x.shape[1:]).to(x)
    x_t = expand(at.alpha, x) * x + expand(at.beta, x) * z
    error = (z - flow.estimate(x_t, t, condition).noise).double().square().flatten(1).sum(1)
    # E‖z‖² = d is known, and at little noise ẑ is nearly independent of z: what ‖z‖² varies by is taken out again,
    # with the share that is best for data of unit deviation.
    excess = z.double().square().flatten(1).sum(1) - x[0].numel()
    return weight * (error - (torch.sigmoid(log_snr) ** 2).to(error) * excess)


def _reconstruction(x: Tensor, log_snr: float, config: BoundConfig, index: Tensor) -> Tensor:
    """−E log p(x | x_high), B; one draw of x_high for levels, in closed form for a density."""
    dimensions = x[0].numel()
    if not config.levels:
        value = dimensions / 2 * (math.log(2 * math.pi * math.e) - log_snr)
        return torch.full((len(x),), value, dtype=torch.float64)
    levels = torch.linspace(-1, 1, config.levels, dtype=torch.float64)
    deviation = math.exp(-log_snr / 2)
    z = Key(config.seed, "bound reconstruction").normal(index, x.shape[1:]).double()
    seen = x.double().cpu() + deviation * z
    scores = -((seen[..., None] - levels) ** 2) / (2 * deviation**2)
    true = ((x.double().cpu() + 1) / 2 * (config.levels - 1)).round().long()
    chosen = torch.log_softmax(scores, dim=-1).gather(-1, true[..., None])
    return -chosen.flatten(1).sum(1)
