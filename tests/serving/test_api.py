"""The API by OpenAI's own client, by plain HTTP, and by clients that misbehave."""

import base64
import io
import json
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from PIL import Image

from rectiflow.data.pictures import to_uint8
from rectiflow.request import Request
from rectiflow.serving.limits import Limits
from tests.serving.conftest import PATIENCE, counted, delete, get, post, running, until

PATH = "/v1/images/generations"
LIMITS = Limits(body=4000, body_seconds=PATIENCE, prompt=50, pictures=4, steps=40)


@pytest.fixture(scope="module")
def server(classes):
    with running(classes, limits=LIMITS) as (address, _):
        yield address


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(b64):
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def test_pictures_are_those_of_the_library_and_carry_their_settings(client, classes):
    extra = {"seed": 7, "steps": 6, "guidance": 0.5, "solver": "heun"}
    answer = client.images.generate(prompt="dog", n=3, model="tiny", size="6x4", extra_body=extra)
    assert (answer.size, answer.output_format, len(answer.data)) == ("6x4", "png", 3)
    request = Request(("dog",), 3, 6, "heun", guidance=0.5, seed=7, size=(4, 6))
    expected = to_uint8(classes.sample(request).pixels).int().numpy()[..., 0]
    for index, (picture, pixels) in enumerate(zip(answer.data, expected, strict=True)):
        image = opened(picture.b64_json)
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
        told = picture.model_extra
        assert {name: told[name] for name in extra} == extra
        assert (told["index"], told["prompt"], told["n"]) == (index, "dog", 3)
        assert {name: image.text[name] for name in ("class", "seed", "steps", "solver", "guidance", "model")} == {
            "class": "dog", "seed": "7", "steps": "6", "solver": "heun", "guidance": "0.5", "model": "tiny"
        }  # fmt: skip


def test_what_is_left_out_is_chosen_and_told(client):
    first, second = (client.images.generate(prompt="cat").data[0] for _ in range(2))
    assert first.steps == 5
    assert first.guidance == 1.0
    assert first.seed != second.seed
    again = client.images.generate(prompt="cat", extra_body={"seed": first.seed}).data[0]
    assert opened(again.b64_json).tobytes() == opened(first.b64_json).tobytes()


def test_streams(client):
    events = list(client.images.generate(prompt="cat", n=2, stream=True, partial_images=2, extra_body={"seed": 1}))
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert [event.type for event in events] == [partial] * 4 + [completed] * 2
    assert [event.partial_image_index for event in events[:4]] == [0, 0, 1, 1]
    assert [event.model_extra["index"] for event in events] == [0, 1] * 3
    whole = client.images.generate(prompt="cat", n=2, extra_body={"seed": 1}).data
    for event, picture in zip(events[-2:], whole, strict=True):
        assert opened(event.b64_json).tobytes() == opened(picture.b64_json).tobytes()
    assert opened(events[0].b64_json).tobytes() != opened(events[2].b64_json).tobytes()
    (only,) = client.images.generate(prompt="cat", stream=True)
    assert only.type == completed
    with pytest.raises(openai.BadRequestError, match="unknown class"):
        client.images.generate(prompt="cot", stream=True)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "rectiflow"
    with pytest.raises(openai.NotFoundError, match="unknown model 'tin'"):
        client.models.retrieve("tin")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": "cta"}, "prompt", "Did you mean 'cat'"),
        ({"prompt": ""}, "prompt", "Expected one of: cat, dog, eel"),
        ({"prompt": "x" * 51}, "prompt", "at most 50 characters, received 51"),
        ({"prompt": "a\x00b"}, "prompt", "U+0000"),
        ({"prompt": 3}, "prompt", "valid string"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"model": "tinny"}, "model", "Did you mean 'tiny'"),
        ({"n": 0}, "n", "expected 1 to 4, received 0"),
        ({"n": 5}, "n", "expected 1 to 4"),
        ({"n": True}, "n", "valid integer"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"steps": 41}, "steps", "expected 1 to 40"),
        ({"size": "5x4"}, "size", "multiples of 2, received 5x4; the nearest is 4x4"),
        ({"size": "64x64"}, "size", "at most 8"),
        ({"size": "big"}, "size", "expected WIDTHxHEIGHT, as 4x4"),
        ({"size": "0x4"}, "size", "multiples of 2"),
        ({"size": "٤x٤"}, "size", "expected WIDTHxHEIGHT"),
        ({"seed": 2**63}, "seed", "expected"),
        ({"seed": "7"}, "seed", "valid integer"),
        ({"guidance": -1}, "guidance", "expected 0 to 100"),
        ({"guidance": 1e999}, None, "Infinity is no number of JSON"),
        ({"guidance": float("nan")}, None, "NaN is no number of JSON"),
        ({"solver": "huen"}, "solver", "Did you mean 'heun'"),
        ({"solver": "rk45:tolerance=1e-12"}, None, "evaluations of the network"),
        ({"negative_prompt": "dog"}, "negative_prompt", "needs a model that takes prompts"),
        ({"response_format": "url"}, "response_format", "ask for b64_json"),
        ({"output_format": "jpeg"}, "output_format", "png"),
        ({"quality": "hd"}, "quality", "auto"),
        ({"sede": 1}, "sede", "Did you mean 'seed'"),
        ({"partial_images": -1, "stream": True}, "partial_images", "expected 0 to"),
    ],
)
def test_bad_values_are_named(server, fields, param, words):
    body = json.dumps({"prompt": "cat", **fields})
    answer = post(server + PATH, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "application/json", 400, "not JSON"),
        (b'{"prompt": "cat"', "application/json", 400, "not JSON"),
        (b'{"prompt": "\xff"}', "application/json", 400, "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "application/json", 400, "U+D800"),
        (b"[1]", "application/json", 400, "must be a JSON object"),
        (b"[" * 3900, "application/json", 400, "not JSON"),
        (b'{"prompt": "cat", "seed": ' + b"9" * 3900 + b"}", "application/json", 400, "received"),
        (b'{"prompt": "' + b"x" * 4000 + b'"}', "application/json", 413, "longer than 4000 bytes"),
        (b'{"prompt": "cat"}', "text/plain", 415, "must be application/json"),
    ],
)
def test_bad_bodies(server, body, kind, status, words):
    answer = post(server + PATH, content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert len(answer.text) < 1000


def test_a_long_body_in_pieces_is_refused_too(server):
    pieces = (b" " * 1000 for _ in range(10))
    answer = post(server + PATH, content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_wrong_paths_and_methods(server):
    assert get(server + PATH).json()["error"]["code"] == "method_not_allowed"
    assert get(server + PATH).status_code == 405
    assert delete(server + "/v1/models").status_code == 405
    assert post(server + "/v1/chat/completions", json={}).json()["error"]["code"] == "not_found"
    assert get(server + "/health").json() == {"status": "ok", "model": "tiny"}


def head(length):
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def spoken(address, said):
    """What a server answers to bytes, for as long as it takes."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE) as line:
        line.sendall(said)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
            if b"}}" in answer:
                break
    return answer.decode()


def test_a_half_sent_body_is_given_up(classes):
    with running(classes, limits=replace(LIMITS, body_seconds=0.5)) as (address, _):
        answer = spoken(address, head(90) + b'{"prompt"')
    assert " 408 " in answer.splitlines()[0]
    assert "body_timeout" in answer


def test_metrics_are_prometheus_text(server, client):
    from prometheus_client.parser import text_string_to_metric_families

    client.images.generate(prompt="cat", n=2)
    families = {family.name: family for family in text_string_to_metric_families(get(server + "/metrics").text)}
    assert families["rectiflow_pictures"].samples[0].value >= 2
    assert {"rectiflow_requests", "rectiflow_queue_length", "rectiflow_call_seconds"} <= set(families)


def test_a_token(classes):
    with running(classes, token="säm-1", limits=LIMITS) as (address, _):
        body = {"prompt": "cat"}
        for header in ({}, {"authorization": "Bearer sam"}, {"authorization": "Basic säm-1".encode()}):
            for answer in (
                post(address + PATH, json=body, headers=header),
                get(address + "/metrics", headers=header),
            ):
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert get(address + "/health").status_code == 200
    with running(classes, token="s3cret", limits=LIMITS) as (address, _):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="s3cre", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{address}/v1", api_key="s3cret").images.generate(prompt="cat").data


@pytest.fixture
def busy(classes):
    """A server with room for one request and one that waits."""
    limits = Limits(slots=1, pictures=1, queue=1, steps=10**7, evaluations=10**8)
    with running(classes, limits=limits, lanes=1) as (address, engine):
        yield address, engine


def half(address, **fields):
    """A connection that has asked for something long."""
    place = urlsplit(address)
    line = socket.create_connection((place.hostname, place.port))
    body = json.dumps({"prompt": "cat", "steps": 10**6, **fields}).encode()
    line.sendall(head(len(body)) + body)
    return line


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_client_frees_its_place_and_a_full_queue_says_when_to_come_back(busy, stream):
    address, engine = busy
    first = half(address, stream=stream)
    until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 1)
    second = half(address, stream=stream)
    until(lambda: engine.waiting() == 1)
    full = post(address + PATH, json={"prompt": "cat"})
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["type"] == "rate_limit_error"
    second.close()
    until(lambda: engine.waiting() == 0)
    first.close()
    assert post(address + PATH, json={"prompt": "cat"}).status_code == 200
    until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 2)


def test_a_server_that_is_closing_says_so(classes):
    with running(classes, limits=LIMITS) as (address, engine):
        engine.refuse()
        answer = post(address + PATH, json={"prompt": "cat"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert get(address + "/health").status_code == 503


def test_a_fault_of_the_server_tells_nothing_of_it(classes, monkeypatch, caplog):
    def broken(self, x_t, t, condition=None):
        raise RuntimeError("secret")

    monkeypatch.setattr(type(classes.flow.network), "forward", broken)
    with running(classes, limits=LIMITS) as (address, _):
        answer = post(address + PATH, json={"prompt": "cat"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_prompts_and_no_prompts(texts, unconditional):
    with running(texts) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        extra = {"seed": 1, "negative_prompt": "a blue 3"}
        picture = client.images.generate(prompt="a red 7 — ü", extra_body=extra).data[0]
        plain = client.images.generate(prompt="a red 7 — ü", extra_body={"seed": 1}).data[0]
        assert opened(picture.b64_json).mode == "RGB"
        assert opened(picture.b64_json).text["prompt"] == "a red 7 — ü"
        assert opened(picture.b64_json).tobytes() != opened(plain.b64_json).tobytes()
        with pytest.raises(openai.BadRequestError, match="prompt is empty"):
            client.images.generate(prompt=" ")
    with running(unconditional) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert client.images.generate(prompt="").data[0].guidance == 0
        with pytest.raises(openai.BadRequestError, match="unconditional"):
            client.images.generate(prompt="cat")
