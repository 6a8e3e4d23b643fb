"""From what a client of the videos API asks for to a `Request`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from pydantic import ConfigDict
from torch import Tensor

from rectiflow.base.config import Config
from rectiflow.request import Request
from rectiflow.serving.frames import STRIDE, longest_clip, most_frames, nearest_frames, read_frame
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Asked, Served, check_rate, naming, parsed, request_of, within

PICTURES = ("input_reference", "last_reference")
NUMBERS: Mapping[str, Callable[[str], Any]] = {
    "seconds": float, "rate": float, "guidance": float, "frames": int, "seed": int, "steps": int,
}  # fmt: skip
_LONGEST = 86_400.0
_OF_PICTURES = "this model makes pictures, not clips; ask /v1/images/generations for them."


class AskedVideo(Config):
    """The body of `POST /v1/videos`: OpenAI's fields, and beyond them frames, rate, seed, steps, solver, guidance and
    negative_prompt; the pictures input_reference and last_reference, of a form or as data URLs, come beside it.

    Args:
        prompt: a text, or the name of a class, or empty for a model that knows neither.
        model: the served one.
        seconds: length; with the rate it gives the nearest number of frames 1+4k.
        size: WIDTHxHEIGHT, or "auto" for the size trained on.
        frames: of the clip, 1+4k; wins over `seconds`; the number trained on if both are left out.
        rate: frames a second.
        seed: any integer of 64 bits; drawn if left out.
        steps: N.
        solver: see `Request`.
        guidance: w ≥ 0 of v = (1+w)·v_y − w·v_∅; others' scale is 1+w.
        negative_prompt: in the place of the null condition, for a model that takes texts.
    """

    model_config = ConfigDict(strict=True)

    prompt: str
    model: str | None = None
    seconds: float | None = None
    size: str = "auto"
    frames: int | None = None
    rate: float | None = None
    seed: int | None = None
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    negative_prompt: str = ""


@final
@dataclass(frozen=True)
class Wanted:
    """A clip to make.

    Args:
        request: what to sample.
        rate: frames a second of its film.
        length: frames of its film.
        before: the film that it goes on from and with whose last frames it begins, as a file; or empty.
    """

    request: Request
    rate: float
    length: int
    before: bytes = b""


def asked_video(values: Mapping[str, Any]) -> AskedVideo:
    """The fields of a body; null is as if left out, and OpenAI's own clients give seconds as a text.

    Raises:
        Refusal: a field that does not exist, or a value of the wrong kind.
    """
    return parsed(AskedVideo, {"prompt": None, **with_seconds(values)})


def with_seconds(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a body with `seconds` as a number.

    Raises:
        Refusal: it is none.
    """
    if isinstance(seconds := values.get("seconds"), str):
        try:
            return {**values, "seconds": float(seconds[:40])}
        except ValueError:
            raise Refusal(400, f"seconds: expected a number, received '{seconds[:40]}'.", "seconds") from None
    return values


def check_makes_clips(served: Served) -> None:
    """Nothing, for a model of clips.

    Raises:
        Refusal: it makes pictures.
    """
    if most_frames(served.pipeline, served.limits) == 1:
        raise Refusal(400, _OF_PICTURES, code="no_videos")


def wanted_of(served: Served, fields: AskedVideo, pictures: Mapping[str, bytes]) -> Wanted:
    """What to make.

    Args:
        served: the model.
        fields: what is asked for.
        pictures: files of the clip's first frame ("input_reference") and of its last one ("last_reference").

    Raises:
        Refusal: a value that cannot be, or that is beyond a limit; it names the field.
    """
    check_makes_clips(served)
    rate = served.rate if fields.rate is None else fields.rate
    check_rate(rate, "rate")
    frames = frames_of(served, fields.frames, fields.seconds, rate)
    shared = fields.model_dump(exclude={"seconds", "frames", "rate"})
    request = request_of(served, Asked(**shared), frames)
    return Wanted(with_pictures(served, request, pictures), rate, frames)


def frames_of(served: Served, frames: int | None, seconds: float | None, rate: float) -> int:
    """T of a clip: as asked for, or the nearest to so many seconds, or as trained.

    Raises:
        Refusal: it is not 1+4k, or too many.
    """
    most = longest_clip(served.pipeline, served.limits)
    if frames is not None:
        within("frames", frames, 2, most)
        if (frames - 1) % STRIDE:
            near = min(nearest_frames(frames), nearest_frames(most - STRIDE / 2))
            raise Refusal(400, f"frames: a clip has 1+4k of them, received {frames}; the nearest is {near}.", "frames")
        return frames
    if seconds is None:
        return min(most_frames(served.pipeline, served.limits), served.pipeline.shape[1])
    if not 0 < seconds <= _LONGEST:
        raise Refusal(400, f"seconds: expected more than 0, up to {_LONGEST:g}, received {seconds:g}.", "seconds")
    frames = nearest_frames(seconds * rate)
    if frames > most:
        words = f"{seconds:g} s at {rate:g} frames a second are {frames} frames, expected at most {most}"
        raise Refusal(400, f"seconds: {words}; ask for {most / rate:g} s, or for a lower rate.", "seconds")
    return frames


def with_pictures(served: Served, request: Request, pictures: Mapping[str, bytes]) -> Request:
    """The request with what its clip begins and ends with, if pictures are given for it.

    Raises:
        Refusal: one is broken, or this model is given no frames.
    """
    if not pictures:
        return request
    first, last = (_frame(served, request, name, pictures.get(name)) for name in PICTURES)
    given = replace(request, first=first, last=last)
    naming(next(iter(pictures)), lambda: served.pipeline.labels(given))
    return given


def _frame(served: Served, request: Request, name: str, content: bytes | None) -> Tensor | None:
    if content is None:
        return None
    if not served.takes_frames:
        raise Refusal(400, f"{name}: this model is given no frames of its clips; leave it out.", name)
    channels, size = served.pipeline.shape[0], request.size or served.pipeline.size
    return naming(name, lambda: read_frame(content, channels, size))
