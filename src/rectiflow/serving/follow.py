"""The events of a request, for code that waits without a thread."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, final

from rectiflow.request import Request
from rectiflow.serving.engine import Engine
from rectiflow.serving.job import Closing, Event, Failed, Full, Pictures, Preview
from rectiflow.serving.refusal import Refusal


@final
class Gone(Exception):
    """The client has left."""


async def follow(
    engine: Engine, request: Request, previews: int = 0, gone: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> AsyncGenerator[Pictures, None]:
    """The events of a request until its pictures are there; a request that is no longer followed is cancelled.

    Args:
        engine: makes the pictures.
        request: what to sample.
        previews: see `Engine.submit`.
        gone: waits until nobody is there any more; None is never.

    Raises:
        InputError: the request cannot be.
        Full: the queue is full.
        Closing: the engine is shutting down.
        Gone: the client has left.
    """
    loop = asyncio.get_running_loop()
    box: asyncio.Queue[Event] = asyncio.Queue()
    job = engine.submit(request, lambda event: _hand_over(loop, box, event), previews)
    left = None if gone is None else asyncio.create_task(gone())
    if left is not None:  # whether or not somebody still waits for the next event here
        left.add_done_callback(lambda _: engine.cancel(job))
    try:
        while True:
            event = await _next(box, left)
            if isinstance(event, Failed):
                raise event.error
            yield event
            if not isinstance(event, Preview):
                return
    finally:
        engine.cancel(job)
        if left is not None:
            left.cancel()


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error; of ours it learns nothing but that it was ours."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Full):
        return Refusal(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, Closing):
        return Refusal(503, str(error), code="shutting_down", retry_after=10)
    if isinstance(error, ValueError):
        return Refusal(400, str(error))
    return Refusal(500, "the server failed at this request; its log says why.", code="internal_error")


async def _next(box: asyncio.Queue[Event], left: asyncio.Task[None] | None) -> Event:
    if left is None:
        return await box.get()
    event = asyncio.create_task(box.get())
    try:
        both: set[asyncio.Task[Any]] = {event, left}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if event.done():
            return event.result()
        raise Gone
    finally:
        event.cancel()


def _hand_over(loop: asyncio.AbstractEventLoop, box: asyncio.Queue[Event], event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(box.put_nowait, event)
