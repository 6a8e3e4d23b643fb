"""A film that goes on: from what a client of the videos API asks for to a `Request` that begins with its end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict

from rectiflow.base.config import Config
from rectiflow.continuation import usual_overlap
from rectiflow.data.images import to_float
from rectiflow.request import OVERLAP
from rectiflow.serving.asked_video import Wanted, with_seconds
from rectiflow.serving.frames import LONGEST, STRIDE, longest_clip, most_frames, read_frames
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Asked, Served, check_rate, naming, parsed, request_of, within

_ID = "video[id]"  # as clients flatten {"video": {"id": …}}
_VIDEO = 'video: expected a film: a file of a form, or {"id": "video_…"} of a finished one of this server'


class AskedExtension(Config):
    """The body of `POST /v1/videos/extensions`: OpenAI's fields, and beyond them frames, seed, steps, solver, guidance
    and negative_prompt. The rate is the film's. The film comes beside it, as a file of a form, or is named.

    Args:
        prompt: a text, or the name of a class, or empty for a model that knows neither.
        video: id of a finished film of this server; empty where one comes as a file.
        model: the served one.
        size: WIDTHxHEIGHT, to which the film is brought; "auto" is that of a film of this server, else that trained on.
        seconds: that come to it; with the film's rate they give the nearest number of frames 4k.
        frames: that come to it, 4k; wins over `seconds`; if both are left out, what a window has beside the end.
        seed: any integer of 64 bits; drawn if left out.
        steps: N.
        solver: see `Request`.
        guidance: w ≥ 0 of v = (1+w)·v_y − w·v_∅; others' scale is 1+w.
        negative_prompt: in the place of the null condition, for a model that takes texts.
    """

    model_config = ConfigDict(strict=True)

    prompt: str
    video: str = ""
    model: str | None = None
    size: str = "auto"
    seconds: float | None = None
    frames: int | None = None
    seed: int | None = None
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    negative_prompt: str = ""


def asked_extension(values: Mapping[str, Any]) -> AskedExtension:
    """The fields of a body, without a film that came as a file.

    Raises:
        Refusal: a field that does not exist, or a value of the wrong kind.
    """
    video = values.get(_ID, values.get("video", ""))
    name = video.get("id") if isinstance(video, Mapping) else video
    if not isinstance(name, str):
        raise Refusal(400, f"{_VIDEO}.", "video")
    rest = {key: value for key, value in values.items() if key not in (_ID, "video")}
    return parsed(AskedExtension, {"prompt": None, "video": name, **with_seconds(rest)})


def extension_of(served: Served, fields: AskedExtension, film: bytes) -> Wanted:
    """What to make of the frames that follow a film.

    Args:
        served: the model.
        fields: what is asked for.
        film: its file.

    Raises:
        Refusal: a value that cannot be, or that is beyond a limit; no film; or the model is given no frames.
    """
    if not served.takes_frames:
        raise Refusal(400, "video: this model is given no frames of its clips, so no film can go on.", "video")
    if not film:
        raise Refusal(400, f"{_VIDEO}.", "video")
    window = most_frames(served.pipeline, served.limits)
    shared = fields.model_dump(exclude={"video", "seconds", "frames"})
    request = request_of(served, Asked(**shared), window)
    size = request.size or served.pipeline.size
    channels = served.pipeline.shape[0]
    held = min(LONGEST - STRIDE, served.limits.film_bytes // (channels * size[0] * size[1]))
    ending, count, rate = naming("video", lambda: read_frames(film, channels, size, held, OVERLAP))
    check_rate(rate, "video")
    overlap = min(usual_overlap(window), 1 + (count - 1) // STRIDE * STRIDE)
    most = min(longest_clip(served.pipeline, served.limits) - overlap, (LONGEST - count) // STRIDE * STRIDE)
    new = _new_frames(fields, min(window - overlap, most), most, rate)
    end = to_float(ending[:, -overlap:].permute(0, 4, 1, 2, 3))
    request = replace(request, frames=overlap + new, first=end)
    naming("video", lambda: served.pipeline.labels(request))
    return Wanted(request, rate, count + new, film)


def _new_frames(fields: AskedExtension, usual: int, most: int, rate: float) -> int:
    if fields.frames is not None:
        within("frames", fields.frames, STRIDE, most)
        if fields.frames % STRIDE:
            near = fields.frames // STRIDE * STRIDE
            words = f"a film goes on by 4k of them, received {fields.frames}; the nearest below is {near}"
            raise Refusal(400, f"frames: {words}.", "frames")
        return fields.frames
    if fields.seconds is None:
        return usual
    within("seconds", fields.seconds, 0, LONGEST / rate)
    frames = STRIDE * max(1, round(fields.seconds * rate / STRIDE))
    if frames > most:
        words = f"{fields.seconds:g} s at {rate:g} frames a second are {frames} frames, expected at most {most}"
        raise Refusal(400, f"seconds: {words}; ask for {most / rate:g} s.", "seconds")
    return frames
