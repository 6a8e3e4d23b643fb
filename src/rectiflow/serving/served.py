"""A model as it is served, and the way from what a client asks for to a `Request`."""

import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, final

from pydantic import ConfigDict, ValidationError

from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError, unknown
from rectiflow.data.film_frames import load_av
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.sampling.solvers import solver as solver_named
from rectiflow.serving.frames import frames_trained, makes_clips
from rectiflow.serving.limits import Limits
from rectiflow.serving.refusal import Refusal

T = TypeVar("T")
C = TypeVar("C", bound=Config)
_SEEDS = 2**31
_LARGEST_SEED = 2**63
_LARGEST_GUIDANCE = 100.0
_SLOWEST, _FASTEST = 0.1, 120.0  # frames a second


@final
@dataclass(frozen=True)
class Served:
    """A model under a name, with its limits and with what is taken where a client says nothing.

    Args:
        pipeline: the model.
        name: what clients call it.
        limits: of a request.
        steps: N.
        solver: see `Request`.
        guidance: w ≥ 0; None is 1 where the model was trained for it, else 0.
        rate: frames a second of clips.
    """

    pipeline: Pipeline
    name: str
    limits: Limits = field(default_factory=Limits)
    steps: int = 50
    solver: str = "euler"
    guidance: float | None = None
    rate: float = 8.0

    def check(self) -> None:
        """Whether what is taken where a client says nothing can be.

        Raises:
            InputError: it cannot, or what makes films of clips is missing.
        """
        if makes_clips(self.pipeline):
            load_av()
        names = self.pipeline.class_names
        prompt = "a prompt" if self.takes_prompts else names[0] if names else ""
        try:
            check_rate(self.rate, "rate")
            request_of(self, Asked(prompt=prompt), frames_trained(self.pipeline))
        except Refusal as refusal:
            raise InputError(refusal.message) from refusal

    @property
    def takes_frames(self) -> bool:
        """Whether clips may be given what they begin and end with."""
        return makes_clips(self.pipeline) and self.pipeline.conditioner.frames is not None

    @property
    def usual_guidance(self) -> float:
        """w where a client says nothing."""
        return float(self.pipeline.conditioner.null_trained) if self.guidance is None else self.guidance

    @property
    def takes_prompts(self) -> bool:
        """Whether a prompt is a text, and not the name of a class."""
        return self.pipeline.takes_prompts

    @property
    def unit(self) -> int:
        """What the sides of a picture are multiples of."""
        space = self.pipeline.autoencoder
        factor = space.factor if isinstance(space, LatentSpace) else 1
        return self.pipeline.network_config.multiple * factor

    @property
    def longest_side(self) -> int:
        """Of a picture, in pixels."""
        return self.limits.side or 2 * max(self.pipeline.size)


class Asked(Config):
    """The body of `POST /v1/images/generations`: OpenAI's fields, and beyond them seed, steps, solver, guidance and
    negative_prompt. Fields that a model here has no use for take their neutral value alone.

    Args:
        prompt: a text, or the name of a class, or empty for a model that knows neither.
        model: the served one.
        n: pictures.
        size: WIDTHxHEIGHT, or "auto" for the size trained on.
        seed: any integer of 64 bits; drawn if left out.
        steps: N.
        solver: see `Request`.
        guidance: w ≥ 0 of v = (1+w)·v_y − w·v_∅; others' scale is 1+w.
        negative_prompt: in the place of the null condition, for a model that takes texts.
        stream: whether to answer in server-sent events.
        partial_images: previews of each picture in a stream.
        response_format: pictures come in the answer alone.
        output_format: as PNG.
        background: neutral.
        moderation: neutral.
        quality: neutral.
        style: neutral.
        output_compression: neutral.
        user: ignored.
        safety_identifier: ignored.
    """

    model_config = ConfigDict(strict=True)

    prompt: str
    model: str | None = None
    n: int = 1
    size: str = "auto"
    seed: int | None = None
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    stream: bool = False
    partial_images: int = 0
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    quality: Literal["auto"] = "auto"
    style: Literal["auto"] = "auto"
    output_compression: Literal[100] = 100
    user: str = ""
    safety_identifier: str = ""


def asked(values: Mapping[str, Any]) -> Asked:
    """The fields of a body; null is as if left out.

    Raises:
        Refusal: a field that does not exist, or a value of the wrong kind.
    """
    if values.get("response_format") == "url":
        raise Refusal(400, "pictures are not kept here, so they have no url; ask for b64_json.", "response_format")
    return parsed(Asked, values)


def parsed(kind: type[C], values: Mapping[str, Any]) -> C:
    """The fields of a body of this kind; null is as if left out.

    Raises:
        Refusal: a field that does not exist, or a value of the wrong kind.
    """
    given = {name: value for name, value in values.items() if value is not None or name == "prompt"}
    try:
        return kind.parse(given, "request")
    except InputError as error:
        cause = error.__cause__
        place = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else ()
        raise Refusal(400, str(error), str(place[0])[:100] if place else None) from error


def request_of(served: Served, fields: Asked, frames: int = 1) -> Request:
    """What to sample.

    Args:
        served: the model.
        fields: what is asked for.
        frames: of each clip, within the limit, for a model of clips, of which 1 is a picture.

    Raises:
        Refusal: a value that cannot be, or that is beyond a limit; it names the field.
    """
    limits = served.limits
    if fields.model not in (None, served.name):
        raise Refusal(404, str(unknown("model", fields.model or "", [served.name])), "model", "model_not_found")
    steps = served.steps if fields.steps is None else fields.steps
    guidance = served.usual_guidance if fields.guidance is None else fields.guidance
    seed = secrets.randbelow(_SEEDS) if fields.seed is None else fields.seed
    solver = fields.solver or served.solver
    within("n", fields.n, 1, limits.pictures)
    within("steps", steps, 1, limits.steps)
    within("partial_images", fields.partial_images, 0, limits.steps)
    within("guidance", guidance, 0, _LARGEST_GUIDANCE)
    within("seed", seed, -_LARGEST_SEED, _LARGEST_SEED - 1)
    _readable("prompt", fields.prompt, limits.prompt)
    _readable("negative_prompt", fields.negative_prompt, limits.prompt)
    naming("solver", lambda: solver_named(solver))
    size = _size(served, fields.size)
    classes, prompts = _of_prompt(served, fields.prompt)
    request = Request(
        classes=classes,
        prompts=prompts,
        negative=fields.negative_prompt,
        count=fields.n,
        steps=steps,
        solver=solver,
        guidance=guidance,
        seed=seed,
        size=size,
        frames=frames if makes_clips(served.pipeline) else None,
    )
    fault = "negative_prompt" if fields.negative_prompt else "guidance"
    naming(fault, lambda: served.pipeline.labels(request))
    return request


def _of_prompt(served: Served, prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes and prompts."""
    names = served.pipeline.class_names
    if served.takes_prompts:
        if not prompt.strip():
            raise Refusal(400, "the prompt is empty; say what is to be seen.", "prompt")
        return (), (prompt,)
    if names:
        if prompt.strip() not in names:
            raise Refusal(400, str(unknown("class", prompt, names)), "prompt", "unknown_class")
        return (prompt.strip(),), ()
    if prompt.strip():
        raise Refusal(400, "this model is unconditional: it reads no prompt; leave it empty.", "prompt")
    return (), ()


def _size(served: Served, size: str) -> tuple[int, int] | None:
    """Height and width of WIDTHxHEIGHT; None for "auto"."""
    if size == "auto":
        return None
    width, _, height = size.partition("x")
    trained = "{1}x{0}".format(*served.pipeline.size)
    if not all(side.isascii() and side.isdigit() and len(side) < 6 for side in (width, height)):
        raise Refusal(400, f"size: expected WIDTHxHEIGHT, as {trained}, or auto, received '{size}'.", "size")
    sides, unit, longest = (int(width), int(height)), served.unit, served.longest_side
    if max(sides) > longest:
        raise Refusal(400, f"size: a side is at most {longest} here, received {size}.", "size")
    if any(side % unit or not side for side in sides):
        near = "x".join(str(max(1, round(side / unit)) * unit) for side in sides)
        raise Refusal(400, f"size: sides are multiples of {unit}, received {size}; the nearest is {near}.", "size")
    return sides[1], sides[0]


def check_rate(rate: float, name: str) -> None:
    """Nothing, if films can have so many frames a second.

    Raises:
        Refusal: they cannot.
    """
    within(name, rate, _SLOWEST, _FASTEST)


def within(name: str, value: float, low: float, high: float) -> None:
    """Nothing, if the field `name` lies between `low` and `high`.

    Raises:
        Refusal: it does not.
    """
    if not low <= value <= high:
        raise Refusal(400, f"{name}: expected {low:g} to {high:g}, received {value}.", name)


def _readable(name: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise Refusal(400, f"{name}: at most {longest} characters, received {len(text)}.", name)
    for character in text:
        if unicodedata.category(character) == "Cs" or (
            unicodedata.category(character) == "Cc" and character not in "\n\r\t"
        ):
            raise Refusal(400, f"{name}: expected a text, received the character U+{ord(character):04X}.", name)


def naming(param: str, check: Callable[[], T]) -> T:
    """What `check` gives; whatever is wrong is the fault of the field `param`.

    Raises:
        Refusal: in place of an InputError.
    """
    try:
        return check()
    except InputError as error:
        raise Refusal(400, str(error), param) from error
