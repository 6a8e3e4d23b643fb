"""Films that go on, and films that are longer than a window, by OpenAI's own client."""

import io
import json

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from rectiflow.continuation import continued
from rectiflow.data import film_frames, given
from rectiflow.data.clips import film_strip, save_clip
from rectiflow.request import Request
from rectiflow.serving import asked_extension
from rectiflow.serving.frames import levels
from tests.serving.conftest import post

pytest.importorskip("av")
from tests.serving.videos import film_with_gaps, finished, frames_of, picture, the_client, the_server  # noqa: F401 (two fixtures)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def film_of(pixels, path):
    """Frames as a film has them, for they are not quite those that it is made of."""
    save_clip(pixels, path, 8, {}, scale=1)
    return frames_of(path.read_bytes())[0].astype(int)


def test_a_film_goes_on_from_its_end(client, clips, tmp_path):
    first = finished(client, prompt="left", seconds="1.1", size="24x16", extra_body={"seed": 4, "rate": 8})
    extra = {"seed": 9, "steps": 6, "guidance": 0.5}
    named = {"prompt": "right", "seconds": 0.5, "video": {"id": first.id}, **extra}
    longer = post(f"{client.base_url}videos/extensions", json=named).json()
    longer = client.videos.poll(longer["id"], poll_interval_ms=20)
    assert longer.status == "completed", longer.error
    assert (longer.seconds, longer.size, longer.prompt, longer.model_extra["frames"]) == ("1.625", "24x16", "right", 13)
    before, _, _ = frames_of(client.videos.download_content(first.id).read())
    made, rate, told = frames_of(client.videos.download_content(longer.id).read())
    assert (len(before), len(made), rate, json.loads(told["comment"])["frames"]) == (9, 13, 8, 13)
    end = torch.from_numpy(before[-5:].copy()).permute(3, 0, 1, 2)[None] / 127.5 - 1
    request = Request(("right",), 1, 6, guidance=0.5, seed=9, size=(16, 24), frames=9, first=end)
    both = torch.cat([torch.from_numpy(before), levels(clips.sample(request).pixels)[0, 5:]])
    save_clip(both, tmp_path / "both.mp4", 8, {}, scale=1)
    expected, _, _ = frames_of((tmp_path / "both.mp4").read_bytes())
    assert np.abs(made.astype(int) - expected).mean() < 1
    thirds = finished(client, prompt="left", extra_body={"rate": 12})  # 4/12 s, as nobody writes it
    named = {"prompt": "left", "seconds": 0.34, "video": thirds.id}
    assert post(f"{client.base_url}videos/extensions", json=named).status_code == 200

    content = client.videos.download_content(longer.id).read()
    again = client.videos.extend(prompt="left", seconds="0.5", video=io.BytesIO(content), extra_body={"size": "16x24"})
    again = client.videos.poll(again.id, poll_interval_ms=20)
    assert (again.status, again.size, again.model_extra["frames"]) == ("completed", "16x24", 17)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({}, 400, "video: expected a film"),
        ({"video": {"id": "video_0"}}, 404, "there is no video 'video_0'"),
        ({"frames": 3}, 400, "frames: expected 4 to 12"),
        ({"frames": 16}, 400, "frames: expected 4 to 12"),
        ({"frames": 9}, 400, "goes on by 4k of them, received 9; the nearest below is 8"),
        (
            {"seconds": 100},
            400,
            "seconds: 100 s at 8 frames a second are 800 frames, expected at most 12; ask for 1.5 s",
        ),
        ({"size": "17x16"}, 400, "size: sides are multiples of"),
        ({"rate": 3}, 400, "unknown setting 'rate'"),
        ({"prompt": "up"}, 400, "unknown class 'up'"),
    ],
)
def test_what_cannot_go_on_is_told(client, fields, status, words):
    film = finished(client, prompt="left")
    named = {} if not fields else {"video": {"id": film.id}}
    answer = post(f"{client.base_url}videos/extensions", json={"prompt": "left", **named, **fields})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_film_that_is_not_done_cannot_go_on(client):
    film = client.videos.create(prompt="left", extra_body={"steps": 40})
    answer = post(f"{client.base_url}videos/extensions", json={"prompt": "left", "video": {"id": film.id}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "video_not_ready")


def test_what_is_no_film_cannot_go_on(client):
    for content in (b"", b"film", picture()):
        with pytest.raises(openai.BadRequestError, match=r"expected a film|is no film"):
            client.videos.extend(prompt="left", seconds="0.5", video=io.BytesIO(content))


@pytest.mark.parametrize("longest", ["LONGEST", "_LARGEST", "_MOST"])
def test_a_film_that_is_too_much_is_refused_before_it_is_read_whole(client, monkeypatch, longest):
    module = asked_extension if longest == "LONGEST" else given
    monkeypatch.setattr(module, longest, 8)
    film = finished(client, prompt="left")
    content = client.videos.download_content(film.id).read()
    pictures, plain = [], film_frames._frame

    def counted(*told):
        frame = plain(*told)
        return frame._replace(image=lambda: pictures.append(1) or frame.image())

    monkeypatch.setattr(film_frames, "_frame", counted)
    words = r"(enormous|more than (8 pixels in all|[48] frames)); expected a film, such as an mp4 file, of at most"
    with pytest.raises(openai.BadRequestError, match=words):
        client.videos.extend(prompt="left", seconds="0.5", video=io.BytesIO(content))
    assert not pictures


def test_a_film_whose_end_is_missing_does_not_go_on(client):
    content = client.videos.download_content(finished(client, prompt="left").id).read()
    with pytest.raises(openai.BadRequestError, match="truncated or damaged; expected a film"):
        client.videos.extend(prompt="left", seconds="0.5", video=io.BytesIO(content[:-1]))


def off_by(client, film, frames):
    """Levels by which frames of a film differ at most; of the same ones H.264's coder makes one film or another."""
    sheet = Image.open(io.BytesIO(client.videos.download_content(film.id, variant="spritesheet").read()))
    return np.abs(np.asarray(sheet).astype(int) - np.asarray(film_strip(frames, 8))).max()


def test_a_long_film_is_that_of_the_library(client, clips, tmp_path):
    """And goes on by several windows at once."""
    long = finished(client, prompt="left", seconds="2", extra_body={"seed": 4, "guidance": 0.5})
    assert (long.seconds, long.model_extra["frames"]) == ("2.125", 17)
    request = Request(("left",), 1, 5, guidance=0.5, seed=4, frames=17)
    assert off_by(client, long, levels(continued(clips, request).pixels)) <= 1
    made, rate, told = frames_of(client.videos.download_content(long.id).read())
    assert (made.shape, rate, json.loads(told["comment"])["frames"]) == ((17, 16, 16, 3), 8, 17)

    named = {"prompt": "right", "frames": 12, "video": {"id": long.id}, "seed": 9, "guidance": 0.5}
    longer = client.videos.poll(post(f"{client.base_url}videos/extensions", json=named).json()["id"])
    assert (longer.status, longer.model_extra["frames"]) == ("completed", 29)
    end = torch.from_numpy(made[-5:].copy()).permute(3, 0, 1, 2)[None] / 127.5 - 1
    request = Request(("right",), 1, 5, guidance=0.5, seed=9, frames=17, first=end)
    both = torch.cat([torch.from_numpy(made), levels(continued(clips, request).pixels)[0, 5:]])
    assert off_by(client, longer, both[None]) <= 1
    film, rate, told = frames_of(client.videos.download_content(longer.id).read())
    assert (film.shape, rate, json.loads(told["comment"])["frames"]) == ((29, 16, 16, 3), 8, 29)
    off = np.abs(film.astype(int) - film_of(both, tmp_path / "both.mp4"))
    assert off.mean(axis=(1, 2, 3)).max() < 3, "in each frame, by no more than a coder makes of it"


def test_a_film_of_uneven_times_goes_on(client, tmp_path):
    """By its median rate it has fewer frames than are coded, by more than those that follow."""
    path = tmp_path / "uneven.mp4"
    film_with_gaps(path, [5] * 48 + [4] * 31)  # of 1/120 s
    made = client.videos.extend(prompt="left", seconds="0.17", video=path, extra_body={"size": "16x16"})
    made = client.videos.poll(made.id, poll_interval_ms=20)
    assert made.status == "completed", made.error
    assert made.model_extra["frames"] == 73 + 4
