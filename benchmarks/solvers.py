"""Error against function evaluations, beside diffusers' schedulers: OMP_NUM_THREADS=1 python benchmarks/solvers.py

Exact fields, so the error is that of the integration alone. A: 8 Gaussians on a ring in the plane; G: the same guided
(w = 2, label {0, 1}); H: 16 Gaussians in 1024 dimensions. Both libraries start from the same float32 noise, stop at the
same times (diffusers' DPM-Solver and UniPC begin at 1 − 1e-6, as they do by default) and make at most the same number
of evaluations. The error is the root mean square per coordinate, on H the median over particles: a few of them fall
into another basin.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import common
from rectiflow.base.condition import Condition
from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.guidance import ClassifierFree, guided
from rectiflow.sampling.sample import State, trajectory
from rectiflow.sampling.solvers import SOLVERS, solver
from rectiflow.sampling.stochastic import Stochastic

EVALUATIONS = (10, 20, 50)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
OURS = [name for name in SOLVERS if name != "rk45" and not isinstance(solver(name), Stochastic)]
GRIDS: dict[str, dict[str, object]] = {
    "uniform": {},
    "shift 3": {"shift_by": 3.0},
    "log-snr": {"kind": "log-snr"},
}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
THEIRS: dict[str, tuple[Callable[[], object], int]] = {  # how it is made, evaluations per step
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, 1),
    "FlowMatchHeun": (FlowMatchHeunDiscreteScheduler, 2),
    "DPMSolverMultistep, order 2": (lambda: DPMSolverMultistepScheduler(**FLOW), 1),
    "DPMSolverMultistep, order 3": (lambda: DPMSolverMultistepScheduler(solver_order=3, **FLOW), 1),
    "UniPC, order 2": (lambda: UniPCMultistepScheduler(**FLOW), 1),
    "UniPC, order 3": (lambda: UniPCMultistepScheduler(solver_order=3, **FLOW), 1),
}


@dataclass(frozen=True)
class Problem:
    """An exact field, where it starts and where it ends."""

    flow: GaussianMixtureFlow
    z: Tensor
    condition: Condition | None = None
    guidance: ClassifierFree | None = None
    median: bool = False

    def last(self, name: str, grid: Tensor, z: Tensor) -> State:
        *_, state = trajectory(self.flow, z, grid, solver(name), self.condition, self.guidance)
        return state

    def error(self, x: Tensor, reference: Tensor) -> float:
        each = (x.double() - reference).square().mean(1)
        return float(f"{float(each.median() if self.median else each.mean()) ** 0.5:.3g}")


def problems() -> dict[str, Problem]:
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = math.sqrt(2 * (1 - 0.2**2)) * torch.stack([angle.cos(), angle.sin()], dim=1)
    ring, generator = GaussianMixtureFlow(means, 0.2, classes=[[0, 1]]), torch.Generator().manual_seed(0)
    far = GaussianMixtureFlow(
        math.sqrt(1 - 0.09) * torch.randn(16, 1024, dtype=torch.float64, generator=generator), 0.3
    )
    z = torch.randn(1000, 2, generator=generator)
    label = Condition(torch.zeros(1000, dtype=torch.int64))
    return {
        "A": Problem(ring, z),
        "G": Problem(ring, z, label, ClassifierFree(2.0)),
        "H": Problem(far, torch.randn(144, 1024, generator=generator), median=True),
    }


def by_diffusers(name: str, problem: Problem, grid: Tensor) -> tuple[Tensor, int]:
    """What a scheduler makes of the noise on our grid, and how often it evaluated the field."""
    make, each = THEIRS[name]
    scheduler = make()
    scheduler.set_timesteps(len(grid) - 1)
    sigmas = grid.float()
    if name.startswith(("DPM", "UniPC")):
        sigmas[0] = 1 - 1e-6
    times = sigmas[:-1]
    if each == 2:  # Heun's stops twice at each inner time, and its last step is Euler's
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas, scheduler.timesteps = sigmas, 1000 * times
    scheduler.set_begin_index(0)
    x = problem.z
    for timestep, t in zip(scheduler.timesteps, times.double(), strict=True):
        velocity = guided(problem.flow, problem.guidance, problem.condition, x, t, t, None).velocity
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x, len(times)


def measure(problem: Problem) -> dict[str, object]:
    reference = problem.last("rk4", time_grid(200), problem.z.double()).x_t
    errors: dict[str, dict[str, list[float]]] = {}
    for grid, kind in GRIDS.items():
        rows = errors.setdefault(grid, {})
        for name in OURS:
            method = solver(name)
            for limit in EVALUATIONS:
                steps = (limit - method.starting) // method.evaluations
                state = problem.last(name, time_grid(steps, **kind), problem.z)
                assert state.evaluations <= limit
                rows.setdefault(name, []).append(problem.error(state.x_t, reference))
        for name, (_, each) in THEIRS.items():
            for limit in EVALUATIONS:
                x, made = by_diffusers(name, problem, time_grid(limit // each, **kind))
                assert made <= limit
                rows.setdefault(f"diffusers {name}", []).append(problem.error(x, reference))
    adaptive = {}
    for tolerance in TOLERANCES:
        state = problem.last(f"rk45:tolerance={tolerance}", time_grid(1), problem.z)
        adaptive[f"{tolerance:g}"] = {
            "evaluations": state.evaluations,
            "error": problem.error(state.x_t, reference),
        }
    return {"errors": errors, "rk45": adaptive}


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, object] = {
        "diffusers": diffusers.__version__,
        "settings": {"evaluations": EVALUATIONS, "particles": {"A": 1000, "G": 1000, "H": 144}, "dtype": "float32"},
    }
    found, start = {}, time.perf_counter()
    for name, problem in problems().items():
        found[name] = measure(problem)
        for grid, rows in found[name]["errors"].items():
            print(f"\n{name}, {grid}, at {EVALUATIONS} evaluations")
            for method, errors in sorted(rows.items(), key=lambda row: row[1][1]):
                print(f"  {method:38} " + "  ".join(f"{error:.2e}" for error in errors), flush=True)
        print(f"  rk45: {found[name]['rk45']}")
    rows = found["H"]["errors"]["uniform"]
    theirs = {name: errors for name, errors in rows.items() if name.startswith("diffusers")}
    ahead = {
        name: [round(other / own, 2) for own, other in zip(rows["fast"], errors, strict=True)]
        for name, errors in theirs.items()
    }
    print("\nerror of theirs over that of fast, H, uniform:", ahead)
    seconds = round(time.perf_counter() - start, 1)
    common.write("solvers", {**result, "seconds": seconds, "fast_ahead_on_H": ahead, "problems": found})


if __name__ == "__main__":
    main()
