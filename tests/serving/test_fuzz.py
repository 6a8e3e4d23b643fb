"""Whatever comes in, what comes out is pictures or a refusal in OpenAI's form, and the server stays up."""

import asyncio
import json
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.sampling.solvers import SOLVERS
from rectiflow.serving.limits import Limits
from rectiflow.serving.served import Asked, Served
from rectiflow.serving.server import application
from tests.serving.conftest import NAMES, engine_of

PATH = "/v1/images/generations"
LIMITS = Limits(body=3000, prompt=40, pictures=3, steps=8, evaluations=60)


@pytest.fixture(scope="module")
def call(classes):
    with engine_of(classes, LIMITS, lanes=1) as engine:
        app = application(engine, Served(classes, "tiny", LIMITS, steps=3))

        async def post(content, headers):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
                return await client.post(PATH, content=content, headers=headers)

        yield lambda content, kind="application/json": asyncio.run(post(content, {"content-type": kind}))


def check(answer):
    assert answer.status_code in (200, 400, 404, 413, 415), answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert "image_generation.completed" in answer.text or "event: error" in answer.text
    elif answer.status_code == 200:
        assert all(picture["b64_json"] for picture in answer.json()["data"])
    else:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 0 < len(error["message"]) < 600
        assert "\n" not in error["message"]
    return answer


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
likely = {
    "prompt": st.sampled_from(NAMES) | st.text(max_size=50),
    "n": st.integers(-1, 4),
    "size": st.sampled_from(["auto", "4x4", "2x6", "8x8", "10x2"]) | st.from_regex(r"\d{1,5}x\d{1,5}", fullmatch=True),
    "seed": st.integers(-(2**65), 2**65),
    "steps": st.integers(-1, 9),
    "solver": st.sampled_from(list(SOLVERS))
    | st.sampled_from(["rk45:tolerance=1e-9", "ddpm:eta=nan", "sde:scale=inf"]),
    "guidance": st.floats(),
    "stream": st.booleans(),
    "partial_images": st.integers(-1, 9),
}
bodies = st.fixed_dictionaries({"prompt": likely.pop("prompt")}, optional=likely | {"model": st.just("tiny")})


@settings(max_examples=120, deadline=None)
@given(bodies)
def test_likely_bodies(call, body):
    check(call(json.dumps(body)))


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(st.sampled_from(list(Asked.model_fields)) | st.text(max_size=10), anything, max_size=6),
    st.booleans(),
)
def test_unlikely_bodies(call, body, named):
    check(call(json.dumps({"prompt": "cat", **body} if named else body, ensure_ascii=named)))


@settings(max_examples=120, deadline=None)
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: json.dumps({"prompt": text}).encode()[:-1]),
    st.text("abc/;=", max_size=9),
)
def test_bytes(call, content, kind):
    assert check(call(content)).status_code >= 400
    assert check(call(content, kind)).status_code >= 400


@pytest.fixture(scope="module")
def film(clips):
    limits = replace(LIMITS, upload=3000, films=3, slots=40)
    with engine_of(clips, limits, lanes=1) as engine:
        app = application(engine, Served(clips, "tiny", limits, steps=1))

        async def asked(method, path, **more):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
                return await client.request(method, f"/v1/videos{path}", **more)

        yield lambda method, path="", **more: asyncio.run(asked(method, path, **more))


def check_video(answer):
    if answer.status_code == 200:
        assert answer.json()["object"] == "video"
    elif answer.status_code != 429:
        check(answer)


of_videos = {
    "seconds": scalars | st.sampled_from(["1", "0.5", "1e400"]),
    "frames": st.integers(-1, 12),
    "rate": st.floats(),
    "size": st.sampled_from(["auto", "16x16", "8x16", "17x16"]) | st.text(max_size=9),
    "seed": st.integers(-(2**65), 2**65),
    "input_reference": anything,
}


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries({"prompt": st.sampled_from(["left", ""]) | st.text(max_size=9)}, optional=of_videos))
def test_videos_of_bodies_and_forms(film, body):
    text = json.dumps(body)
    check_video(film("POST", content=text, headers={"content-type": "application/json"}))
    encoded = {name: str(value).encode("utf-8", "replace") for name, value in body.items()}
    check_video(film("POST", files={name: (None, value) for name, value in encoded.items()}))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["b", "", "é", "b; charset=x"]))
def test_broken_forms(film, content, boundary):
    kind = f"multipart/form-data; boundary={boundary}".encode()
    head = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
    for sent in (content, head + content, head + content + b"\r\n--b--\r\n"):
        check_video(film("POST", content=sent, headers={b"content-type": kind}))


@settings(max_examples=40, deadline=None)
@given(st.from_regex(r"[!-~]{0,30}", fullmatch=True), st.sampled_from(["GET", "DELETE", "POST"]))
def test_odd_queries(film, words, method):
    assert film("GET", params={"after": words, "limit": words}).status_code in (200, 400)
    assert film(method, f"/{quote(words, safe='')}").status_code in (200, 400, 404, 405, 307)


def test_the_server_is_still_up(call):
    assert check(call(json.dumps({"prompt": "cat"}))).status_code == 200
