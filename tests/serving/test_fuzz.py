"""Whatever comes in, what comes out is pictures or a refusal in OpenAI's form, and the server stays up."""

import asyncio
import json

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


def test_the_server_is_still_up(call):
    assert check(call(json.dumps({"prompt": "cat"}))).status_code == 200
