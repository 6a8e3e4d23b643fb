"""Floor 6: clips longer than those a model was trained on, each window begun by the end of the one before."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rectiflow.base import machine
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.pipeline import Pipeline
from rectiflow.request import OVERLAP, Request, Samples


def continued(pipeline: Pipeline, request: Request, overlap: int = OVERLAP) -> Samples:
    """What `pipeline.sample` makes; of clips of more frames than it was trained on, window by window.

    A window has as many frames as the model was trained on and goes on from the end of the one before, with noise of
    its own, a function of the seed and the window's number.

    Args:
        pipeline: a model of clips that may be given their beginning.
        request: what to make; its `last` is the last frame of the last window.
        overlap: frames that a window takes over from the one before, 1+4m, fewer than a window has.

    Raises:
        InputError: a model of pictures, or one that is given no frames; an overlap that does not suit; more than
            there is memory for; one line.
    """
    check_room(pipeline, request)
    window = pipeline.shape[1] if len(pipeline.shape) == 4 else 1
    frames = request.frames
    if frames is None or frames <= window or len(pipeline.shape) == 3:
        return pipeline.sample(request)
    if pipeline.conditioner.frames is None:
        raise InputError(
            f"{frames} frames are more than the {window} of a window, and this model is given no frames to go on from; "
            f"ask for {window}, or train one with frames as condition."
        )
    if not 1 <= overlap < window or (overlap - 1) % 4:
        fits = min(OVERLAP, window - 4)
        raise InputError(f"expected an overlap of 1+4m frames below {window}, received {overlap}; use {fits}.")
    if (frames - 1) % 4:
        raise InputError(
            f"a clip has 1+4k frames, received {frames}; the nearest is {1 + 4 * round((frames - 1) / 4)}."
        )
    ends = pipeline.sample(replace(request, frames=window, last=None)).pixels
    parts, there, number = [ends], window, 0
    while there < frames:
        number += 1
        more = min(window - overlap, frames - there)  # the last window takes over what it does not add
        last = request.last if there + more == frames else None
        given = replace(request, frames=window, last=last, seed=window_seed(request.seed, number))
        made = _gone_on(pipeline, given, ends[:, :, more:])[:, :, -more:]
        parts.append(made)
        ends, there = torch.cat([ends, made], dim=2)[:, :, -window:], there + more
    labels = pipeline.labels(request)
    return Samples(torch.cat(parts, dim=2), labels, pipeline.prompts(request) if pipeline.takes_prompts else ())


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


def _gone_on(pipeline: Pipeline, request: Request, ends: Tensor) -> Tensor:
    """What follows each of the clips of a request that end so, prompt by prompt, or class by class."""
    names: Sequence[str | int | None] = request.prompts or request.classes or pipeline.class_names or (None,)
    parts = []
    for group, name in enumerate(names):
        asked = replace(request, first=ends[group * request.count : (group + 1) * request.count])
        if request.prompts:
            asked = replace(asked, prompts=(str(name),))
        elif name is not None:  # 0 is a class
            asked = replace(asked, classes=(name,))
        parts.append(pipeline.sample(asked).pixels)
    return torch.cat(parts)
