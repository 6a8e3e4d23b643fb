"""Bodies of requests: JSON, and forms that carry pictures."""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from rectiflow.serving.limits import Limits
from rectiflow.serving.refusal import Refusal

T = TypeVar("T")
_FORM = "multipart/form-data"
_MOST_FIELDS = 40
_URL = "[image_url]"  # as clients flatten {"image_url": …}


def kind_of(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request, limits: Limits) -> dict[str, Any]:
    """The object of a body of JSON.

    Raises:
        Refusal: another type, no JSON object, or it does not arrive in time.
    """
    kind = kind_of(request)
    # A page of a stranger can send other types to a loopback address without asking; never this one.
    if kind != "application/json":
        raise Refusal(415, f"the body must be application/json, received {kind or 'no type'}.")
    raw = await _in_time(request.body(), limits)
    try:
        values = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8.", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        words = str(error) if isinstance(error, ValueError) else "too deeply nested"
        raise Refusal(400, f"the body is not JSON: {words}.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, 'the body must be a JSON object, as {"prompt": "…"}.', code="invalid_json")
    return values


async def fields_and_pictures(
    request: Request, limits: Limits, pictures: tuple[str, ...], numbers: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields of a body of JSON or of a form, and the bytes of the files in it.

    Args:
        request: what is asked.
        limits: of its body.
        pictures: names of fields that are files: of a form, or data URLs, as {"image_url": "data:…"}.
        numbers: what makes a number of a field of a form, in which all is text; what is none stays a text.

    Raises:
        Refusal: another type, a body that is broken or does not arrive in time, or that a stranger's page sends.
    """
    kind = kind_of(request)
    if kind not in ("application/json", _FORM):
        raise Refusal(415, f"the body must be application/json or {_FORM}, received {kind or 'no type'}.")
    if kind == "application/json":
        values = await json_body(request, limits)
        return values, {name: _from_url(name, values.pop(name)) for name in pictures if values.get(name) is not None}
    _refuse_strangers(request)
    try:
        form = await _in_time(_form(request), limits)
    except (HTTPException, MultiPartException) as error:
        words = str(getattr(error, "detail", None) or error).rstrip(".")
        raise Refusal(400, f"the body is no {_FORM}: {words}.", code="invalid_form") from None
    try:
        return await _sorted(form, pictures, numbers)
    finally:
        await form.close()


async def _sorted(
    form: FormData, pictures: tuple[str, ...], numbers: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields and files of a form."""
    values: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        plain = name.removesuffix(_URL)
        if plain in values or plain in files:
            raise Refusal(400, f"{plain[:100]}: given twice; leave out one of them.", plain[:100])
        if isinstance(value, UploadFile):
            if plain not in pictures:
                raise Refusal(400, f"{plain[:100]}: expected a text, received a file.", plain[:100])
            files[plain] = await value.read()
        elif plain in pictures:
            files[plain] = _from_url(plain, value)
        else:
            values[name] = _number(value, numbers[name]) if name in numbers else value
    return values, files


async def _form(request: Request) -> FormData:
    return await request.form(max_files=_MOST_FIELDS, max_fields=_MOST_FIELDS, max_part_size=16 * 1024 * 1024)


async def _in_time(coming: Awaitable[T], limits: Limits) -> T:
    try:
        return await asyncio.wait_for(coming, limits.body_seconds)
    except TimeoutError:
        raise Refusal(408, "the body did not arrive in time.", code="body_timeout") from None


def _refuse_strangers(request: Request) -> None:
    """A page of a stranger can send a form to a loopback address without asking; its browser says where it is from."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Refusal(403, "the page of another site may send no form here.", code="cross_origin")


def _from_url(name: str, value: object) -> bytes:
    """The bytes of a data URL, or of {"image_url": one}."""
    url = value.get("image_url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url.startswith("data:"):
        words = 'expected a picture: a file of a form, or {"image_url": "data:image/png;base64,…"}; nothing is fetched'
        raise Refusal(400, f"{name}: {words}.", name)
    head, _, content = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{name}: the data URL is not base64.", name) from None


def _number(text: str, number: Callable[[str], Any]) -> Any:
    try:
        return number(text[:400])
    except ValueError:
        return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
