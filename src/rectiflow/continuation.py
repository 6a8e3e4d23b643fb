"""Floor 6: clips longer than those a model was trained on, each window begun by the end of the one before."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from rectiflow.base import machine
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.pipeline import Pipeline
from rectiflow.request import OVERLAP, Request, Samples


@final
class Windows:
    """The windows that clips are made in, each begun by the end of the one before; one, if they are no longer than it.

    Every window has noise of its own, a function of the seed and of its number.

    Args:
        pipeline: the model; of clips that may be given their beginning, if they are longer than a window.
        request: what to make; its `first` begins the first window, and its `last` is the last frame of the last.
        overlap: frames that a window takes over from the one before, 1+4m, fewer than a window has.
        window: frames of a window; 0 is as many as the model was trained on.

    Raises:
        InputError: longer clips of a model that is given no frames, an overlap that does not suit, or a number of
            frames that is not 1+4k; one line.
    """

    def __init__(self, pipeline: Pipeline, request: Request, overlap: int = OVERLAP, window: int = 0) -> None:
        clips = len(pipeline.shape) == 4
        trained = pipeline.shape[1] if clips else 1
        self.request, self.overlap, self.window = request, overlap, window or trained
        self.frames = trained if request.frames is None or not clips else request.frames
        if self.frames > self.window:
            self._check(pipeline)
        more = max(0, self.frames - self.window)
        self.count = 1 + math.ceil(more / (self.window - overlap)) if more else 1
        self.done = self._there = 0
        self._ends: Tensor | None = None

    def _check(self, pipeline: Pipeline) -> None:
        frames, window, overlap = self.frames, self.window, self.overlap
        if pipeline.conditioner.frames is None:
            raise InputError(
                f"{frames} frames are more than the {window} of a window, and this model is given no frames to go on "
                f"from; ask for {window}, or train one with frames as condition."
            )
        if not 1 <= overlap < window or (overlap - 1) % 4:
            fits = usual_overlap(window)
            raise InputError(f"expected an overlap of 1+4m frames below {window}, received {overlap}; use {fits}.")
        if (frames - 1) % 4:
            raise InputError(
                f"a clip has 1+4k frames, received {frames}; the nearest is {1 + 4 * round((frames - 1) / 4)}."
            )

    @property
    def _new(self) -> int:
        """Frames that the next window adds; the last one takes over what it does not add."""
        return self.window if self._ends is None else min(self.window - self.overlap, self.frames - self._there)

    def asked(self) -> Request:
        """What the next window is sampled by; `first` has, once there is one, the end of each clip."""
        if self.count == 1:
            return self.request
        last = self.request.last if self.done == self.count - 1 else None
        if self._ends is None:
            return replace(self.request, frames=self.window, last=last)
        seed = window_seed(self.request.seed, self.done)
        return replace(self.request, frames=self.window, last=last, seed=seed, first=self._ends[:, :, self._new :])

    def add(self, pixels: Tensor) -> Tensor:
        """Go on from the clips of a window, B×C×T×H×W in [−1, 1]; returns those of their frames that are new."""
        made = pixels if self.count == 1 else pixels[:, :, -self._new :]
        if self.count > 1:
            self._there += made.shape[2]
            self._ends = made if self._ends is None else torch.cat([self._ends, made], dim=2)[:, :, -self.window :]
        self.done += 1
        return made


def continued(pipeline: Pipeline, request: Request, overlap: int = OVERLAP) -> Samples:
    """What `pipeline.sample` makes; of clips of more frames than it was trained on, window by window.

    Args:
        pipeline: a model of clips that may be given their beginning.
        request: what to make; its `last` is the last frame of the last window.
        overlap: frames that a window takes over from the one before, 1+4m, fewer than a window has.

    Raises:
        InputError: a model of pictures, or one that is given no frames; an overlap that does not suit; more than
            there is memory for; one line.
    """
    check_room(pipeline, request)
    windows = Windows(pipeline, request, overlap)
    if windows.count == 1:
        return pipeline.sample(request)
    parts = [windows.add(pipeline.sample(windows.asked()).pixels)]
    while windows.done < windows.count:
        parts.append(windows.add(_gone_on(pipeline, windows.asked())))
    labels = pipeline.labels(request)
    return Samples(torch.cat(parts, dim=2), labels, pipeline.prompts(request) if pipeline.takes_prompts else ())


def usual_overlap(window: int) -> int:
    """Frames that a window of so many takes over from the one before."""
    return max(1, min(OVERLAP, window - 4))


def check_room(pipeline: Pipeline, request: Request) -> None:
    """Nothing, if all that a request makes fits in the memory that is free.

    Raises:
        InputError: it does not; one line.
    """
    named = request.prompts or request.classes or pipeline.class_names or ("",)
    size = request.size or pipeline.size
    frames = (request.frames or pipeline.shape[1],) if len(pipeline.shape) == 4 else ()
    machine.check_fits(len(named) * request.count, (pipeline.shape[0], *frames, *size))


def window_seed(seed: int, window: int) -> int:
    """The seed of the noise of a window after the first, of 64 bits, so that no other request has it."""
    high, low = Key(seed, "window").words(torch.tensor([window]), 2)[0].tolist()
    return high << 32 | low


def _gone_on(pipeline: Pipeline, request: Request) -> Tensor:
    """What follows the ends of all clips, which are the request's `first`, prompt by prompt, or class by class."""
    names: Sequence[str | int | None] = request.prompts or request.classes or pipeline.class_names or (None,)
    assert request.first is not None, "a window goes on from something"
    parts = []
    for name, ends in zip(names, request.first.split(request.count), strict=True):
        asked = replace(request, first=ends)
        if request.prompts:
            asked = replace(asked, prompts=(str(name),))
        elif name is not None:  # 0 is a class
            asked = replace(asked, classes=(name,))
        parts.append(pipeline.sample(asked).pixels)
    return torch.cat(parts)
