"""The videos API by OpenAI's own client, and by plain HTTP where that client would never send such a thing."""

import base64
import io
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from PIL import Image

from rectiflow.data.clips import save_clip
from rectiflow.request import Request
from rectiflow.serving.frames import levels
from rectiflow.serving.limits import Limits
from tests.serving.conftest import counted, post, put, running, until

pytest.importorskip("av")
from tests.serving.videos import LIMITS, PATH, client_of, data_url, finished, frames_of, picture, the_client, the_server  # noqa: F401 (two fixtures)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = {"steps": 10**5}


def test_a_film_is_the_clip_of_the_library(client, clips, tmp_path):
    extra = {"seed": 7, "steps": 6, "guidance": 0.5, "solver": "heun", "rate": 4}
    before = int(time.time())
    video = client.videos.create(prompt="left", model="tiny", size="24x16", seconds="1.3", extra_body=extra)
    assert (video.object, video.model, video.error) == ("video", "tiny", None)
    assert video.status in ("queued", "in_progress")
    assert before <= video.created_at <= time.time()
    done = client.videos.poll(video.id)
    assert (done.id, done.status, done.progress, done.prompt) == (video.id, "completed", 100, "left")
    assert (done.seconds, done.size, done.model_extra["frames"]) == ("1.25", "24x16", 5)
    assert {name: done.model_extra[name] for name in extra} == extra
    assert done.created_at <= done.completed_at < done.expires_at == done.completed_at + LIMITS.film_seconds

    answer = client.videos.download_content(video.id)
    assert answer.response.headers["content-type"] == "video/mp4"
    made, rate, told = frames_of(answer.read())
    request = Request(("left",), 1, 6, "heun", guidance=0.5, seed=7, size=(16, 24), frames=5)
    alone = levels(clips.sample(request).pixels)[0]
    save_clip(alone, tmp_path / "alone.mp4", 4, {}, scale=1)
    expected, _, _ = frames_of((tmp_path / "alone.mp4").read_bytes())
    assert (made.shape, rate) == ((5, 16, 24, 3), 4)
    assert np.abs(made.astype(int) - expected).mean() < 1
    assert json.loads(told["comment"])["seed"] == 7

    small = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
    assert (small.format, np.abs(np.asarray(small).astype(int) - alone[2].numpy()).max()) == ("WEBP", 0)
    sheet = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").read()))
    assert sheet.width > 5 * 24


def test_what_is_left_out_is_chosen_and_told(client):
    video = finished(client, prompt="right")
    told = video.model_extra
    assert (told["frames"], told["rate"], video.seconds, video.size) == (9, 8.0, "1.125", "16x16")
    assert (told["steps"], told["guidance"]) == (5, 1.0)
    wins = finished(client, prompt="right", seconds="12", extra_body={"frames": 5, "seed": told["seed"]})
    assert wins.model_extra["frames"] == 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_given_picture_is_the_first_frame(client, kind):
    video = finished(client, prompt="left", input_reference=("a", picture(kind=kind), "image/png"))
    made, _, _ = frames_of(client.videos.download_content(video.id).read())
    assert np.abs(made[0].astype(int) - [255, 0, 0]).mean() < 12
    assert np.abs(made[4].astype(int) - [255, 0, 0]).mean() > 20


def test_forms_and_json_are_one(client, server, clips):
    content = picture((0, 90, 200))
    body = {"prompt": "left", "seconds": 1, "seed": 3, "guidance": 1.0, "input_reference": data_url(content),
            "last_reference": data_url(picture())}  # fmt: skip
    told = post(server + PATH, json=body).json()
    client.videos.poll(told["id"], poll_interval_ms=20)  # one after the other, so that no call of the network is shared
    other = finished(
        client, prompt="left", seconds="1", input_reference=io.BytesIO(content),
        extra_body={"seed": 3, "guidance": 1.0, "last_reference": data_url(picture())},
    )  # fmt: skip
    plain = finished(client, prompt="left", seconds="1", input_reference=content, extra_body={"seed": 3})
    # Of the same frames H.264's coder makes one film or another; the sheet has the frames themselves.
    sheets = [
        client.videos.download_content(name, variant="spritesheet").read() for name in (told["id"], other.id, plain.id)
    ]
    assert sheets[0] == sheets[1]
    assert sheets[0] != sheets[2]


def test_lists(client):
    made = [client.videos.create(prompt="left", extra_body={"steps": 1}).id for _ in range(5)]
    assert [video.id for video in client.videos.list()] == made[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == made, "pages are gone through"
    page = client.videos.list(limit=2, after=made[3])
    assert ([video.id for video in page.data], page.has_more, page.last_id) == (made[2:0:-1], True, made[1])
    assert client.videos.list(after=made[0]).data == []
    for fields in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "video_no"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(fields))):
            client.videos.list(**fields)


def test_who_is_deleted_is_gone(client):
    video = finished(client, prompt="left")
    answer = client.videos.delete(video.id)
    assert (answer.id, answer.deleted, answer.object) == (video.id, True, "video.deleted")
    for call in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError, match="there is no video"):
            call(video.id)


BAD = [
    ({"prompt": "up"}, "prompt", "Expected one of: left, right"),
    ({"prompt": None}, "prompt", "valid string"),
    ({"prompt": "x" * 51}, "prompt", "at most 50 characters"),
    ({"model": "tinny"}, "model", "Did you mean 'tiny'"),
    ({"seconds": "long"}, "seconds", "expected a number, received 'long'"),
    ({"seconds": 0}, "seconds", "more than 0"),
    ({"seconds": "nan"}, "seconds", "seconds"),
    ({"seconds": 4}, "seconds", "4 s at 8 frames a second are 33 frames, expected at most 17; ask for 2.125 s"),
    ({"size": "17x16"}, "size", "multiples of 4, received 17x16; the nearest is 16x16"),
    ({"size": "720x1280"}, "size", "at most 32"),
    ({"frames": 6}, "frames", "received 6; the nearest is 5"),
    ({"frames": 8}, "frames", "received 8; the nearest is 9"),
    ({"frames": 1}, "frames", "expected 2 to 17, received 1"),
    ({"frames": 21}, "frames", "expected 2 to 17"),
    ({"frames": 5.5}, "frames", "valid integer"),
    ({"rate": 0}, "rate", "expected 0.1 to 120"),
    ({"steps": 41}, "steps", "expected 1 to 40"),
    ({"solver": "huen"}, "solver", "Did you mean 'heun'"),
    ({"negative_prompt": "right"}, "negative_prompt", "needs a model that takes prompts"),
    ({"sed": 1}, "sed", "Did you mean 'seed'"),
    ({"n": 1}, "n", "n"),
    ({"input_reference": {"file_id": "x"}}, "input_reference", "expected a picture"),
    ({"input_reference": {"image_url": "https://example.org/a.png"}}, "input_reference", "nothing is fetched"),
    ({"input_reference": "data:image/png;base64,###"}, "input_reference", "not base64"),
    ({"last_reference": data_url(picture()[:60])}, "last_reference", "expected a picture"),
    ({"input_reference": data_url(b"no picture")}, "input_reference", "expected a picture"),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD)
def test_bad_values_are_named(server, fields, param, words):
    answer = post(server + PATH, json={"prompt": "left", **fields})
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert error["param"] == param, error
    assert words in error["message"]
    assert "\n" not in error["message"]
    texts = {name: str(value) for name, value in {"prompt": "left", **fields}.items() if value is not None}
    if not any(isinstance(value, dict) for value in fields.values()) and len(texts) == len({"prompt", *fields}):
        form = post(server + PATH, files={name: (None, value) for name, value in texts.items()})
        assert form.json()["error"]["param"] == param


def test_the_client_is_told_of_broken_pictures_and_of_none(client):
    with pytest.raises(openai.BadRequestError, match="expected a picture") as told:
        client.videos.create(prompt="left", input_reference=("a.png", picture()[:50], "image/png"))
    assert told.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError, match="valid string") as told:
        client.videos.create(prompt=openai.omit)
    assert told.value.param == "prompt"


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"prompt=left", "application/x-www-form-urlencoded", 415, "application/json or multipart/form-data"),
        (b"left", "text/plain", 415, "application/json or multipart/form-data"),
        (b"left", "multipart/form-data", 400, "no multipart/form-data"),
        (b"left", "multipart/form-data; boundary=b", 400, ""),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nb', "multipart/form-data; boundary=b", 400, ""),
        (b'{"prompt"', "application/json", 400, "not JSON"),
        (b" " * 40_001, "application/json", 413, "longer than 40000 bytes"),
    ],
)  # fmt: skip
def test_bad_bodies(server, content, kind, status, words):
    answer = post(server + PATH, content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_odd_forms(client, server):
    send = lambda files, **more: post(server + PATH, files=files, **more)  # noqa: E731
    twice = send([("prompt", (None, "left")), ("prompt", (None, "right"))])
    assert (twice.status_code, "given twice" in twice.text) == (400, True)
    file = send({"prompt": ("a.txt", b"left")})
    assert (file.status_code, "expected a text, received a file" in file.text) == (400, True)
    form = {"prompt": (None, "left"), "steps": (None, "1")}
    assert send(form, headers={"origin": "http://stranger.example"}).json()["error"]["code"] == "cross_origin"
    assert send(form, headers={"origin": "null"}).status_code == 403
    assert send(form, headers={"origin": server}).status_code == 200
    assert put(server + PATH).json()["error"]["code"] == "method_not_allowed"
    assert post(f"{server}{PATH}/video_x/remix", json={}).json()["error"]["code"] == "not_found"


def test_pictures_of_a_model_of_clips(client, clips):
    answer = client.images.generate(prompt="left", n=2, extra_body={"seed": 5, "steps": 4, "guidance": 1})
    alone = levels(clips.sample(Request(("left",), 2, 4, guidance=1, seed=5, frames=1)).pixels)
    for made, pixels in zip(answer.data, alone.numpy(), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(made.b64_json)))
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
    events = list(client.images.generate(prompt="left", stream=True, partial_images=2))
    assert len(events) == 3


def test_a_model_of_pictures_says_so(classes):
    with running(classes) as (address, _):
        client = client_of(address)
        for call in (
            lambda: client.videos.create(prompt="cat"),
            lambda: client.videos.list(),
            lambda: client.videos.retrieve("video_x"),
            lambda: client.videos.delete("video_x"),
            lambda: client.videos.download_content("video_x"),
        ):
            with pytest.raises(openai.BadRequestError, match="makes pictures, not clips"):
                call()


def test_a_model_that_is_given_no_frames_says_so(clips):
    plain = replace(clips, conditioner=replace(clips.conditioner, frames=None))
    with running(plain) as (address, _), pytest.raises(openai.BadRequestError, match="given no frames"):
        client_of(address).videos.create(prompt="left", input_reference=picture())


@pytest.fixture
def busy(clips):
    """A server with room for one clip and one that waits."""
    limits = Limits(slots=9, pictures=1, queue=1, steps=10**7, evaluations=10**8)
    with running(clips, limits=limits, lanes=1) as (address, engine):
        yield client_of(address), engine


def test_a_full_queue_and_cancelling(busy):
    client, engine = busy
    first = client.videos.create(prompt="left", extra_body=LONG)
    until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 9)
    second = client.videos.create(prompt="left", extra_body=LONG)
    assert client.videos.retrieve(second.id).status == "queued"
    with pytest.raises(openai.RateLimitError) as full:
        client.videos.create(prompt="left")
    assert int(full.value.response.headers["retry-after"]) >= 1
    until(lambda: client.videos.retrieve(first.id).progress > 0)
    asked = client.videos.retrieve(first.id)
    assert (asked.status, asked.completed_at, asked.expires_at) == ("in_progress", None, None)
    with pytest.raises(openai.BadRequestError, match="the film is in_progress"):
        client.videos.download_content(first.id)
    client.videos.delete(second.id)
    assert engine.waiting() == 0
    client.videos.delete(first.id)
    until(lambda: counted(engine, "rectiflow_requests_total", outcome="cancelled") == 2)
    assert finished(client, prompt="left").status == "completed"
    assert len(client.videos.list().data) == 1


def test_films_are_kept_in_bounded_memory_for_their_time(clips, monkeypatch):
    with running(clips, limits=Limits(films=2)) as (address, _):
        client = client_of(address)
        ids = [finished(client, prompt="left").id for _ in range(3)]
        assert [video.id for video in client.videos.list()] == ids[:0:-1]
    with running(clips, limits=Limits(film_bytes=1)) as (address, _):
        client = client_of(address)
        with pytest.raises(openai.NotFoundError):
            finished(client, prompt="left")
    with running(clips) as (address, _):
        client = client_of(address)
        video = finished(client, prompt="left")
        assert [each.id for each in client.videos.list()] == [video.id]
        later = SimpleNamespace(time=lambda: time.time() + Limits.film_seconds)
        monkeypatch.setattr("rectiflow.serving.films.time", later)
        assert client.videos.list().data == []
        with pytest.raises(openai.NotFoundError):
            client.videos.download_content(video.id)


def test_what_fails_is_told(clips, monkeypatch):
    with running(clips, limits=Limits(evaluations=3)) as (address, _):
        client = client_of(address)
        video = client.videos.create_and_poll(prompt="left", poll_interval_ms=20)
        assert (video.status, video.completed_at) == ("failed", None)
        assert "more than 3 evaluations" in video.error.message
        with pytest.raises(openai.BadRequestError, match="there is no film"):
            client.videos.download_content(video.id)

    def broken(*_, **__):
        raise OSError("secret")

    monkeypatch.setattr("rectiflow.serving.films.save_clip", broken)
    with running(clips) as (address, _):
        video = client_of(address).videos.create_and_poll(prompt="left", poll_interval_ms=20)
        assert (video.status, video.error.code) == ("failed", "internal_error")
        assert "secret" not in video.error.message


def test_a_server_that_stops_gives_up_what_nobody_can_fetch(clips):
    with running(clips, limits=Limits(steps=10**6, evaluations=10**7)) as (address, engine):
        client_of(address).videos.create(prompt="left", extra_body=LONG)
        until(lambda: counted(engine, "rectiflow_pictures_in_flight") == 9)
    assert counted(engine, "rectiflow_requests_total", outcome="cancelled") == 1


def test_a_token(clips):
    with running(clips, token="s3cret") as (address, _):
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "s3cre").videos.create(prompt="left")
        assert finished(client_of(address, "s3cret"), prompt="left").progress == 100
