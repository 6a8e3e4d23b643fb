"""The engine: a bounded queue, and lanes that march what comes out of it."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import final

import torch

from rectiflow.base.errors import InputError
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.serving.frames import frames_trained, most_frames
from rectiflow.serving.job import Closing, Event, Failed, Full, Job
from rectiflow.serving.lane import Lane, Precision
from rectiflow.serving.limits import Limits
from rectiflow.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)
_SHARE_OF_NEWEST = 0.1  # in the running mean of how long a request takes
_LONGEST_RETRY = 60
_GATHER_SECONDS, _GATHER_SHARE = 0.03, 0.05  # how long jobs gather, and what part of the usual time at most
_LAST_CALL = 30.0  # seconds that a lane is given to come back from the network when all is over


@final
class Engine:
    """Makes the pictures of many requests at once, each as it would have been made alone.

    Args:
        pipeline: the model.
        limits: what it takes on at most.
        lanes: threads that call the network; 0 is one for each of torch's threads on a CPU, computing with one thread
            each, and one elsewhere. With one lane on a CPU, torch's threads share each call.
        precision: of the network's arithmetic: "float32", or "bfloat16" by autocast.

    Raises:
        InputError: fewer slots in a lane than the pictures of a request, or the frames of a clip.
    """

    def __init__(
        self, pipeline: Pipeline, limits: Limits | None = None, lanes: int = 0, precision: Precision = "float32"
    ) -> None:
        self.pipeline, self.limits, self.metrics = pipeline, limits or Limits(), Metrics()
        cpu = next(pipeline.flow.parameters()).device.type == "cpu"
        count = lanes or (torch.get_num_threads() if cpu else 1)
        self._share, frames = self.limits.slots // count, most_frames(pipeline, self.limits)
        if self._share < max(self.limits.pictures, frames):
            many = self.limits.pictures
            what = f"{many} pictures" if many >= frames else f"a clip of {frames} frames"
            raise InputError(
                f"{self.limits.slots} slots over {count} lanes hold no request of {what}; "
                f"ask for at least {count * max(self.limits.pictures, frames)} slots."
            )
        self._change = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: list[set[Job]] = [set() for _ in range(count)]
        self._closing = self._stopped = False
        self._usual_seconds = 1.0
        self.metrics.watch(self.waiting, lambda: sum(map(self._load, range(count))))
        self._threads = []
        for number in range(count):
            lane = Lane(number, pipeline, self, self.metrics, self.limits, precision, int(cpu and count > 1))
            self._threads.append(threading.Thread(target=lane.run, name=f"lane {number}", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def closing(self) -> bool:
        """Whether requests are refused because the engine is shutting down."""
        return self._closing

    def room(self, frames: int) -> int:
        """Clips of so many frames, of the size trained on, that one request may ask for."""
        return self._share // frames

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, request: Request, listener: Callable[[Event], None], previews: int = 0) -> Job:
        """Put a request into the queue.

        Args:
            request: what to sample; its precision is the engine's.
            listener: told of `previews` × `Preview`, then of `Finished` or `Failed`, on another thread; must not wait.
            previews: how many to make on the way; fewer where there are not steps enough.

        Raises:
            InputError: the request cannot be, or is larger than what is ever taken on.
            Full: the queue is full.
            Closing: the engine is shutting down.
        """
        pictures = len(self.pipeline.labels(request))
        height, width = request.size or self.pipeline.size
        whole = request.frames or frames_trained(self.pipeline)
        frames = min(whole, most_frames(self.pipeline, self.limits))  # a window; the others come after it
        self._check_whole(
            pictures, whole, (height, width), len(request.prompts or request.classes or self.pipeline.class_names)
        )
        area = max(1, math.ceil(frames * height * width / math.prod(self.pipeline.size)))
        if pictures * area > self._share:
            kind = "pictures" if frames == 1 else f"clips of {frames} frames{' at once' if whole > frames else ''}"
            raise InputError(
                f"{pictures} {kind} of {width}x{height} weigh {pictures * area} of the size trained on, more than "
                f"the {self._share} that are made at a time; ask for fewer or for smaller ones."
            )
        job = Job(request, pictures, area, previews, listener)
        with self._change:
            if self._closing:
                raise Closing
            if len(self._queue) >= self.limits.queue:
                self.metrics.requests.labels("refused").inc()
                raise Full(self._retry_after())
            self._queue.append(job)
            self._change.notify_all()
        return job

    def _check_whole(self, clips: int, frames: int, size: tuple[int, int], names: int) -> None:
        """Nothing, unless these are longer than what is made at once, and of several names or more than can be held."""
        if frames <= most_frames(self.pipeline, self.limits):
            return
        if names > 1:
            raise InputError(f"clips of {frames} frames are made of one prompt or class at a time, received {names}.")
        held = clips * frames * self.pipeline.shape[0] * math.prod(size)
        if held > self.limits.film_bytes:
            raise InputError(
                f"{clips} of {frames} frames of {size[1]}x{size[0]} take {held / 2**20:,.0f} MiB, expected at most "
                f"{self.limits.film_bytes / 2**20:,.0f}; ask for fewer, shorter or smaller ones."
            )

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: it leaves the queue now, or its lane before the next evaluation."""
        with self._change:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self.metrics.requests.labels("cancelled").inc()
                self._change.notify_all()

    def refuse(self) -> None:
        """Take no more requests, and go on with those there are."""
        with self._change:
            self._closing = True

    def close(self, grace: float = 30.0) -> None:
        """Take no more requests, finish those there are for up to `grace` seconds, fail the rest, and stop.

        A lane sees that it is over before its next evaluation. One that does not come back from the network in time is
        left to itself: its thread ends with the program.
        """
        with self._change:
            self._closing = True
            self._change.wait_for(lambda: not self._queue and not any(self._running), grace)
            left = [*self._queue, *(job for lane in self._running for job in lane)]
            self._queue.clear()
            self._stopped = True
            for job in left:
                job.cancelled = True
            self._change.notify_all()
        for job in left:
            job.tell(Failed(Closing()))
        end = time.monotonic() + _LAST_CALL
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                _LOG.warning("%s is in the network for more than %g s and is left behind", thread.name, _LAST_CALL)

    def take(self, lane: int, idle: bool) -> list[Job] | None:
        """Jobs for a lane to begin; waits for one if it is idle; None is the end."""
        with self._change:
            while True:
                taken: list[Job] = []
                while self._queue and self._suits(lane, self._queue[0], idle or bool(taken)):
                    job = self._queue.popleft()
                    self._running[lane].add(job)
                    job.begun = True
                    taken.append(job)
                if taken or not idle:
                    if taken and self._queue:
                        self._change.notify_all()
                    return taken
                if self._stopped:
                    return None
                self._change.wait()

    def release(self, lane: int, job: Job, outcome: str) -> None:
        """Give back what a job held, and count its outcome."""
        seconds = time.monotonic() - job.since
        with self._change:
            self._running[lane].discard(job)
            if outcome == "completed":
                self._usual_seconds += _SHARE_OF_NEWEST * (seconds - self._usual_seconds)
            self._change.notify_all()
        self.metrics.requests.labels(outcome).inc()
        if outcome == "completed":
            self.metrics.pictures.inc(job.pictures)
            self.metrics.request_seconds.observe(seconds)

    def _load(self, lane: int) -> int:
        return sum(job.weight for job in tuple(self._running[lane]))

    def _suits(self, lane: int, job: Job, now: bool) -> bool:
        """Whether a lane takes this job: it has room, and not more than its part of all that there is to do.

        A lane that is at work lets jobs gather for a moment, for those that it begins together it can march as one.
        """
        if not now and time.monotonic() - job.since < min(_GATHER_SECONDS, _GATHER_SHARE * self._usual_seconds):
            return False
        loads = [self._load(other) for other in range(len(self._running))]
        part = (sum(loads) + sum(waiting.weight for waiting in self._queue)) / len(loads)
        mine = loads[lane] + job.weight
        return mine <= self._share and (loads[lane] == min(loads) or mine <= part)

    def _retry_after(self) -> int:
        return max(1, min(_LONGEST_RETRY, math.ceil(self._usual_seconds)))
