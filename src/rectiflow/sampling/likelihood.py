"""The exact log-likelihood of a flow, by its ODE: log p(x) = log p_1(x_1) + ∫ div v(x_t, t) dt along dx = v dt.

The sum over time goes from data to noise (Chen et al. 2018; Song et al. 2021, section 4.3). It is valid for every
source whose density is known, whatever the coupling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError, unknown
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import AbstractFlow, Estimate
from rectiflow.flow.prediction import Prediction
from rectiflow.sampling.grids import intervals, time_grid
from rectiflow.sampling.method import History
from rectiflow.sampling.solvers import solver as solver_named

SOLVERS = ("euler", "heun", "midpoint", "rk4", "ab2", "ab3")


@dataclass(frozen=True)
class LikelihoodConfig:
    """How the integral is taken.

    Args:
        steps: N intervals from t_min to t_max.
        solver: one of `SOLVERS`, which ask for the velocity alone, and march upwards in time too; one of first order is
            0.3 nats off where "rk4" is 1e-4.
        grid: as for `time_grid`; empty is "uniform" where the velocity is finite at both ends, as on the rectified and
            the trig path, and "log-snr" elsewhere, where a uniform one would be bits off.
        probes: K random signs ε of Hutchinson's estimate of the divergence, εᵀ(∂v/∂x)ε, each kept along the way;
            0 takes the exact trace, by one backward pass for each dimension.
        seed: of the probes; sample i's depend on (seed, i) alone.
    """

    steps: int = 50
    solver: str = "rk4"
    grid: str | Sequence[float] = ""
    probes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LogLikelihood:
    """log p of B samples of d dimensions.

    Args:
        nats: B, natural log of the density.
        error: B, standard error of each by its probes; 0 if the trace is exact, not a number for a single probe.
        noise: x_1, what each sample came from, B×….
    """

    nats: Tensor
    error: Tensor
    noise: Tensor

    def bits_per_dim(self, levels: int) -> Tensor:
        """−log₂ p per dimension of data that have L levels, B: −log p/(d·ln 2) + log₂((L−1)/2).

        Levels lie 2/(L−1) apart in [−1, 1]. Of samples with uniform noise of that width added, the mean is an upper
        bound of the bits per dimension of the levels themselves.
        """
        dimensions = self.noise[0].numel()
        return -self.nats / (dimensions * math.log(2)) + math.log2((levels - 1) / 2)


def log_likelihood(
    flow: AbstractFlow,
    x: Tensor,
    condition: Condition | None = None,
    config: LikelihoodConfig | None = None,
    index: Tensor | None = None,
) -> LogLikelihood:
    """log p(x) under the flow's ODE.

    Args:
        flow: any flow that gives an instantaneous velocity.
        x: data, B×…, float32 or float64.
        condition: B conditions; None is the null condition.
        config: how; 50 steps of RK4 with the exact trace if left out.
        index: int64 B, global indices of the samples, which their probes depend on; 0 … B−1 if left out.

    Raises:
        InputError: a flow of one step, a negative number of probes, or a solver or grid that is none.
    """
    config = config or LikelihoodConfig()
    if config.probes < 0:
        raise InputError(f"probes must be ≥ 0 (0 is the exact trace), received {config.probes}.")
    if config.solver not in SOLVERS:
        raise unknown("solver of a likelihood", config.solver, SOLVERS)
    path, method = flow.schedule, solver_named(config.solver)
    gentle = path.t_min == 0 and not path.scaled
    kind = config.grid or ("uniform" if gentle else "log-snr")
    times = time_grid(config.steps, shift_by=flow.shift_for(x.shape[1:]), kind=kind, schedule=path).flip(0)
    field = _WithDivergence(flow, x, condition, _probes(config, x, index))
    state = torch.cat([x.flatten(1), x.new_zeros(len(x), field.traces)], dim=1)
    history: History = ()
    for t, s in intervals(times):
        state, history = method.step(field, state, t, s, history)
    dimensions = x[0].numel()
    noise = state[:, :dimensions].reshape(x.shape) / path.prior_std
    traces = state[:, dimensions:].double()
    base = flow.source.log_density(noise.double()) - dimensions * math.log(path.prior_std)
    error = traces.std(1) / field.traces**0.5 if config.probes else torch.zeros_like(base)
    return LogLikelihood(base + traces.mean(1), error, noise)


class _WithDivergence:
    """The velocity of (x, ∫ div v dt), as the field of a solver; one integral for each probe."""

    def __init__(self, flow: AbstractFlow, x: Tensor, condition: Condition | None, probes: Tensor | None) -> None:
        self.flow, self.shape, self.condition, self.probes = flow, x.shape, condition, probes
        self.traces = 1 if probes is None else len(probes)

    def __call__(self, state: Tensor, t: Tensor) -> Estimate:
        dimensions = self.shape[1:].numel()
        with torch.enable_grad():
            x = state[:, :dimensions].detach().reshape(self.shape).requires_grad_()
            velocity = self.flow.estimate(x, t, self.condition).velocity
            traces = self._exact(x, velocity) if self.probes is None else self._estimated(x, velocity, self.probes)
        value = torch.cat([velocity.detach().flatten(1), traces], dim=1)
        return Estimate(state, t, value, Prediction.VELOCITY, self.flow.schedule)

    def _exact(self, x: Tensor, velocity: Tensor) -> Tensor:
        flat, trace = velocity.flatten(1), x.new_zeros(len(x), 1)
        for dimension in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, dimension].sum(), x, retain_graph=True)
            trace += row.flatten(1)[:, dimension : dimension + 1]
        return trace

    def _estimated(self, x: Tensor, velocity: Tensor, probes: Tensor) -> Tensor:
        traces = []
        for probe in probes:
            (product,) = torch.autograd.grad(velocity, x, probe, retain_graph=True)
            traces.append((product * probe).flatten(1).sum(1))
        return torch.stack(traces, dim=1)


def _probes(config: LikelihoodConfig, x: Tensor, index: Tensor | None) -> Tensor | None:
    """K×B×… random signs; None for the exact trace."""
    if not config.probes:
        return None
    index = torch.arange(len(x)) if index is None else index
    draws = [Key(config.seed, "probe", k).uniform(index, x.shape[1:]) for k in range(config.probes)]
    return torch.where(torch.stack(draws) < 0.5, -1.0, 1.0).to(x)
