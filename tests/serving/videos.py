"""What the tests of the videos API share: its client, and films as they come and as they are asked for."""

import base64
import io
from fractions import Fraction

import numpy as np
import openai
import pytest
from PIL import Image

from rectiflow.serving.limits import Limits
from tests.serving.conftest import PATIENCE, running

av = pytest.importorskip("av")

PATH = "/v1/videos"
LIMITS = Limits(body=4000, upload=40_000, body_seconds=PATIENCE, prompt=50, pictures=4, steps=40, windows=3)


def client_of(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module", name="server")
def the_server(clips):
    with running(clips, limits=LIMITS) as (address, _):
        yield address


@pytest.fixture(name="client")
def the_client(server):
    with client_of(server) as client:
        yield client
        for video in client.videos.list():
            client.videos.delete(video.id)


def frames_of(content):
    with av.open(io.BytesIO(content)) as film:
        rate = film.streams.video[0].average_rate
        return (
            np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]),
            float(rate),
            film.metadata,
        )


def picture(colour=(255, 0, 0), size=(20, 16), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format=kind)
    return file.getvalue()


def data_url(content):
    return {"image_url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}


def finished(client, **fields):
    video = client.videos.create_and_poll(poll_interval_ms=20, **fields)
    assert video.status == "completed", video.error
    return video


def film_with_gaps(path, gaps):
    """A grey film that gets brighter, whose frames come so many 1/120 s after each other."""
    with av.open(path, "w") as film:
        stream = film.add_stream("libx264", rate=120, width=16, height=16, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 120)
        for number in range(1 + len(gaps)):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = sum(gaps[:number]), Fraction(1, 120)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
