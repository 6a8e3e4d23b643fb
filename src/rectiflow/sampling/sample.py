"""The sampling loop: written once, for every flow, solver and guidance."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.flow.flow import AbstractFlow, Estimate
from rectiflow.sampling.grids import intervals, time_grid
from rectiflow.sampling.guidance import Guidance, guided
from rectiflow.sampling.method import History, Solver, Transition


@dataclass(frozen=True)
class State:
    """Where sampling stands.

    Args:
        x_t: B×….
        t: time, from the grid.
        step: steps done, 0 … steps.
        steps: steps in all.
        estimate: the guided estimate at the start of the step that led here; None at the start.
        evaluations: of the guided flow so far, each of the whole batch.
        transitions: the Gaussians that the step which led here drew from; none after a deterministic step.
    """

    x_t: Tensor
    t: float
    step: int
    steps: int
    estimate: Estimate | None = None
    evaluations: int = 0
    transitions: tuple[Transition, ...] = ()


Hook = Callable[[State], Tensor]


def trajectory(
    flow: AbstractFlow,
    x: Tensor,
    grid: Tensor,
    solver: Solver,
    condition: Condition | None = None,
    guidance: Guidance | None = None,
    hook: Hook | None = None,
) -> Iterator[State]:
    """March x along the flow through the times of `grid`, yielding the state at each, the first included.

    Args:
        flow: gives the velocity.
        x: state at grid[0], B×…; prior_std·z for a start at t_max.
        grid: float64 times, N+1 for N steps.
        solver: the method.
        condition: B conditions; None is unconditional.
        guidance: None is none.
        hook: called after each step; what it returns takes the place of x_t.
    """
    steps = len(grid) - 1
    field = _Field(flow, guidance, condition, x.shape)
    state = State(x, float(grid[0]), 0, steps)
    history: History = ()
    yield state
    for step, (t, s) in enumerate(intervals(grid), start=1):
        field.begin(t, s)
        x, history = solver.step(field, state.x_t, t, s, history)
        first = field.commit()
        state = State(x, float(s), step, steps, first, field.evaluations, solver.transitions(history))
        if hook is not None:
            state = replace(state, x_t=hook(state))
        yield state


class _Field:
    """The guided estimate during one step, and the guidance's state from step to step."""

    def __init__(
        self, flow: AbstractFlow, guidance: Guidance | None, condition: Condition | None, shape: torch.Size
    ) -> None:
        self.flow, self.guidance, self.condition = flow, guidance, condition
        self.state = guidance.init(shape) if guidance is not None else None
        self.first: Estimate | None = None
        self.evaluations = 0

    def begin(self, t: Tensor, s: Tensor) -> None:
        self.s, self.first = s, None
        if self.guidance is not None:
            self.state = self.guidance.begin(t, s, self.state)

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        estimate = guided(self.flow, self.guidance, self.condition, x_t, t, self.s, self.state)
        self.first = self.first or estimate
        self.evaluations += 1
        return estimate

    def commit(self) -> Estimate | None:
        if self.guidance is not None and self.first is not None:
            self.state = self.guidance.commit(self.first, self.state)
        return self.first


def sample(
    flow: AbstractFlow,
    z: Tensor,
    solver: Solver,
    steps: int = 50,
    condition: Condition | None = None,
    guidance: Guidance | None = None,
    grid: str | Sequence[float] = "uniform",
) -> Tensor:
    """From draws z of the flow's source (B×…) to data, in `steps` steps on a grid (see `time_grid`).

    A solver that chooses its own steps is given the whole interval as one, whatever `steps` says.
    """
    times = time_grid(solver.intervals(steps), shift_by=flow.shift_for(z.shape[1:]), kind=grid, schedule=flow.schedule)
    last = None
    with torch.no_grad():
        for state in trajectory(flow, flow.schedule.prior_std * z, times, solver, condition, guidance):
            last = state
    assert last is not None
    return last.x_t


def log_probability(states: Iterable[State]) -> Tensor:
    """Natural log of the density of all that a trajectory drew after its start, float64 B; 0 if it drew nothing.

    Where each step draws x_s itself ("sde", "ddpm", "sde-dpm++2m"), that is the density of the path given its start,
    steps that draw nothing left out.
    """
    return sum((drawn.log_density() for state in states for drawn in state.transitions), torch.zeros(()).double())
