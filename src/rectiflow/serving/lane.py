"""One thread that marches many trajectories at once and evaluates the network for all of them together.

Each request marches by itself, by the ordinary `Pipeline.states`, with its own solver, steps, guidance and seed, in a
greenlet: a stack of its own on the same thread. Where it evaluates the network it leaves with (x_t, t, condition), and
it is gone on with when the answer is there. So all trajectories of a lane stand at an evaluation whenever the network
is called, no call waits for stragglers, and there is nothing to lock. Threads in their place spent, on small networks,
two thirds of the time on waking each other.

Requests of one way that begin together march as one, for marching each by itself can cost as much as a small network
does; see `gang`. Who leaves is left out of the next call.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, final

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from rectiflow.base.autocast import autocast
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.continuation import Windows, usual_overlap
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.sampling.sample import State
from rectiflow.serving.frames import last_frame, levels, most_frames, up_to_middle
from rectiflow.serving.gang import Gang, gangs, joined
from rectiflow.serving.job import Cancelled, Failed, Finished, Job, Preview
from rectiflow.serving.limits import Limits
from rectiflow.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)
_APART = "apart"  # the outcome of jobs that failed together and are made again one by one
Precision = Literal["float32", "bfloat16"]


@final
@dataclass(frozen=True)
class Call:
    """An evaluation of the network that a trajectory waits for: x_t B×…, t float32 B, B conditions or none."""

    x_t: Tensor
    t: Tensor
    condition: Condition | None

    def goes_with(self, other: "Call") -> bool:
        """Whether one call of the network can do both."""
        same = self.x_t.shape[1:] == other.x_t.shape[1:] and self.x_t.dtype == other.x_t.dtype
        if self.condition is None or other.condition is None:
            return same and self.condition is other.condition
        # Frames that are given to some are no condition of the others.
        return same and (self.condition.image is None) == (other.condition.image is None)

    def select(self, rows: Tensor) -> "Call":
        """The rows at an index (int64) alone."""
        condition = self.condition
        return Call(self.x_t[rows], self.t[rows], None if condition is None else condition.select(rows))


@final
class Shared(nn.Module):
    """A network as a trajectory in a lane sees it: its calls are left to the lane.

    Args:
        network: the one that the lane calls.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """As the network, after the other trajectories have had their turn."""
        lane = getcurrent().parent
        assert lane is not None, "only a trajectory in a lane can wait"
        answer: Tensor = lane.switch(Call(x_t, t, condition))
        return answer


def shared(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, for trajectories in lanes."""
    return replace(pipeline, flow=pipeline.flow.alike(Shared(pipeline.flow.network)).eval())


class Work(Protocol):
    """Where a lane gets its jobs from."""

    def take(self, lane: int, idle: bool) -> list[Job] | None:
        """Jobs to begin; waits for one if the lane is idle; None is the end."""

    def release(self, lane: int, job: Job, outcome: str) -> None:
        """Give back what a job held: it is "completed", "failed" or "cancelled"."""


@final
@dataclass(frozen=True, eq=False)
class _Waiting:
    gang: Gang
    march: greenlet
    call: Call

    @property
    def weight(self) -> int:
        return len(self.call.x_t) * self.gang.jobs[0].area


@final
class Lane:
    """Marches the jobs that it takes.

    Args:
        number: which lane it is, from 0.
        pipeline: the model.
        work: where jobs come from.
        metrics: where calls are counted.
        limits: of one call, which a call heavier by itself is alone to pass, and of one job's evaluations.
        precision: of the network's arithmetic.
        threads: torch's threads of this lane; 0 leaves them as they are.
    """

    def __init__(
        self,
        number: int,
        pipeline: Pipeline,
        work: Work,
        metrics: Metrics,
        limits: Limits,
        precision: Precision = "float32",
        threads: int = 0,
    ) -> None:
        self.number, self.work, self.metrics, self.limits = number, work, metrics, limits
        self.precision, self.threads = precision, threads
        self.network, self.pipeline = pipeline.flow.network, shared(pipeline)
        self.window = most_frames(pipeline, limits)
        self.waiting: list[_Waiting] = []

    def run(self) -> None:
        """March until there is no more work to come."""
        if self.threads:
            torch.set_num_threads(self.threads)
        # Trajectories switch gradients off and on again in turns on one thread: off outside too, they stay off.
        with torch.no_grad():
            while (jobs := self.work.take(self.number, not self.waiting)) is not None:
                for job in jobs:
                    self.metrics.waiting_seconds.observe(time.monotonic() - job.since)
                for gang in gangs(jobs, self.limits.batch, self.window):
                    self._resume(gang, greenlet(self._march), gang)
                self._drop_cancelled()
                if self.waiting:
                    self._round()

    def _round(self) -> None:
        """Evaluate the oldest call together with what goes with it, and go on with those trajectories."""
        group, others = self.waiting[:1], []
        weight = group[0].weight
        for one in self.waiting[1:]:
            if one.call.goes_with(group[0].call) and weight + one.weight <= self.limits.batch:
                group.append(one)
                weight += one.weight
            else:
                others.append(one)
        self.waiting = others
        answers: Sequence[Tensor | Exception]
        try:
            answers = self._evaluate(group)
        except Exception:
            # One of them may be at fault, and the others shall not pay for it.
            answers = [self._alone(one) for one in group]
        for one, answer in zip(group, answers, strict=True):
            one.gang.jobs[0].evaluations += 1
            if one.gang.jobs[0].evaluations > self.limits.evaluations:
                answer = InputError(
                    f"this took more than {self.limits.evaluations} evaluations of the network; ask for fewer steps "
                    "or a coarser tolerance."
                )
            self._resume(one.gang, one.march, answer)

    def _evaluate(self, group: Sequence[_Waiting]) -> Sequence[Tensor]:
        start = time.perf_counter()
        rows = [one.gang.standing_rows(len(one.call.x_t)) for one in group]
        calls = [one.call if kept is None else one.call.select(kept) for one, kept in zip(group, rows, strict=True)]
        # What guidance leads away from has been asked for by itself, and need not be there for each.
        conditions = [replace(call.condition, against=None) for call in calls if call.condition is not None]
        condition = type(conditions[0]).concatenate(conditions) if conditions else None
        x_t, t = torch.cat([call.x_t for call in calls]), torch.cat([call.t for call in calls])
        with autocast(x_t.device, self.precision):
            value: Tensor = self.network(x_t, t, condition)
        self.metrics.rows.observe(len(x_t))
        self.metrics.call_seconds.observe(time.perf_counter() - start)
        parts = value.split([len(call.x_t) for call in calls])
        return [_spread(*each) for each in zip(parts, rows, [len(one.call.x_t) for one in group], strict=True)]

    def _alone(self, one: _Waiting) -> Tensor | Exception:
        try:
            return self._evaluate([one])[0]
        except Exception as error:
            return error

    def _resume(self, gang: Gang, march: greenlet, value: Gang | Tensor | Exception) -> None:
        """Go on with a trajectory until its next evaluation or its end."""
        call = march.throw(value) if isinstance(value, Exception) else march.switch(value)
        if not march.dead:
            self.waiting.append(_Waiting(gang, march, call))
        elif call == _APART:
            for job in gang.jobs:
                job.evaluations = 0
                self._resume(Gang((job,)), greenlet(self._march), Gang((job,)))
        else:
            for job in gang.jobs:
                self.work.release(self.number, job, "cancelled" if job.cancelled and not job.told else call)

    def _drop_cancelled(self) -> None:
        standing, self.waiting = self.waiting, []
        for one in standing:
            if one.gang.cancelled:
                self._resume(one.gang, one.march, Cancelled())
            else:
                self.waiting.append(one)

    def _march(self, gang: Gang) -> str:
        """Jobs from their beginning to their end, as one trajectory; returns the outcome."""
        try:
            self._make(gang)
        except Cancelled:
            return "cancelled"
        except Exception as error:
            if len(gang.jobs) > 1:
                return _APART  # the fault may be of one of them
            if not isinstance(error, InputError):
                _LOG.exception("a request failed")
            gang.jobs[0].tell(Failed(error))
            return "failed"
        return "completed"

    def _make(self, gang: Gang) -> None:
        pipeline, request = joined(self.pipeline, gang)
        request = replace(request, precision=self.precision)
        windows = Windows(pipeline, request, usual_overlap(self.window), self.window)
        if windows.count > 1:
            self._make_long(gang, windows)
            return
        last = self._marched(gang, pipeline, request, windows)
        for job, pixels in self._pictures(gang, gang.jobs, last, request):
            job.tell(Finished(pixels, time.monotonic() - job.since))

    def _make_long(self, gang: Gang, windows: Windows) -> None:
        """Clips of one job, each window from the end of the one before."""
        (job,) = gang.jobs
        parts = []
        while windows.done < windows.count:
            asked = windows.asked()
            last = self._marched(gang, self.pipeline, asked, windows)
            parts.append(levels(windows.add(self.pipeline.decode(last, asked).cpu())))
        job.tell(Finished(torch.cat(parts, dim=1), time.monotonic() - job.since))

    def _marched(self, gang: Gang, pipeline: Pipeline, request: Request, windows: Windows) -> State:
        """The state at the end of a window, which is what its jobs ask for if that is one, with previews on the way."""
        due: dict[Job, tuple[int, ...]] = {}
        for job in gang.jobs:
            job.evaluations = 0
        for state in pipeline.states(request):
            step, steps = windows.done * state.steps + state.step, windows.count * state.steps
            for job in gang.jobs:
                job.progress = step / steps
            if state.step == 0:
                due = {job: moments(steps, job.previews) for job in gang.jobs}
            elif state.estimate is not None and (asking := [job for job in gang.jobs if step in due[job]]):
                expected = replace(state, x_t=up_to_middle(state.estimate.data))
                for job, pixels in self._pictures(gang, asking, expected, request):
                    job.tell(Preview(due[job].index(step), step, steps, last_frame(pixels)))
            last = state
        return last

    def _pictures(
        self, gang: Gang, jobs: Sequence[Job], state: State, request: Request
    ) -> Iterator[tuple[Job, Tensor]]:
        """Of these jobs of a gang, those that are waited for, with their pictures."""
        jobs = [job for job in jobs if not job.cancelled]
        if jobs:
            chosen = replace(state, x_t=state.x_t[gang.rows(jobs)])
            pixels = levels(self.pipeline.decode(chosen, request))
            yield from zip(jobs, pixels.split([job.pictures for job in jobs]), strict=True)


def moments(steps: int, previews: int) -> tuple[int, ...]:
    """After which of the steps to show something: `previews` of them, evenly between the first and the last."""
    marks = (round(steps * mark / (previews + 1)) for mark in range(1, previews + 1))
    return tuple(dict.fromkeys(step for step in marks if 0 < step < steps))


def _spread(value: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Rows of an answer at their places among `count`, and nothing at the others'."""
    if rows is None:
        return value
    return value.new_zeros(count, *value.shape[1:]).index_copy(0, rows.to(value.device), value)
