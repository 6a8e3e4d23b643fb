"""A request on its way through the engine, and what is told of it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from rectiflow.request import Request

_LOG = logging.getLogger(__name__)


@final
class Full(RuntimeError):
    """The queue is full.

    Args:
        retry_after: seconds after which there is likely room, ≥ 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s.")
        self.retry_after = retry_after


@final
class Closing(RuntimeError):
    """The engine is shutting down and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down.")


@final
class Cancelled(Exception):
    """Nobody waits for these pictures any more."""


@final
@dataclass(frozen=True)
class Preview:
    """What the model expects the pictures to become, on the way.

    Args:
        number: of this preview, from 0.
        step: steps done.
        steps: in all.
        pixels: uint8 B×H×W×C; of clips their middle frames.
    """

    number: int
    step: int
    steps: int
    pixels: Tensor


@final
@dataclass(frozen=True)
class Finished:
    """The pictures, uint8 B×H×W×C, or clips, B×T×H×W×C, and the seconds since they were asked for."""

    pixels: Tensor
    seconds: float


@final
@dataclass(frozen=True)
class Failed:
    """No pictures, and why not."""

    error: Exception


Pictures = Preview | Finished
Event = Pictures | Failed


@final
@dataclass(eq=False)
class Job:
    """A request in the queue or in a lane.

    Args:
        request: what to sample.
        pictures: how many it asks for, or clips.
        area: weight of each; see `Limits`.
        previews: how many to make on the way, where there are steps enough.
        listener: told of each event, on the thread of a lane; must not wait.
        since: monotonic time at which it was asked for.
        cancelled: set when nobody waits any more.
        told: whether its pictures were handed over; who leaves after that has not cancelled it.
        evaluations: of the network so far.
        begun: whether a lane has taken it.
        progress: share of its steps that is done, in [0, 1].
    """

    request: Request
    pictures: int
    area: int
    previews: int
    listener: Callable[[Event], None]
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    told: bool = False
    evaluations: int = 0
    begun: bool = False
    progress: float = 0.0

    @property
    def weight(self) -> int:
        """Of all its pictures."""
        return self.pictures * self.area

    def tell(self, event: Event) -> None:
        """Tell the listener; what goes wrong there is logged and harms no other request."""
        if self.cancelled and not isinstance(event, Failed):
            return
        self.told = isinstance(event, Finished)
        try:
            self.listener(event)
        except Exception:
            _LOG.exception("the listener of a request failed")
            self.cancelled = True
