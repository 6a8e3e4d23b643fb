"""Films that are too large, or whose files say what cannot be: refused with the reason, and nothing more."""

import struct
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from rectiflow.base.errors import InputError
from rectiflow.data import film_frames, given
from rectiflow.data.clips import save_clip
from rectiflow.data.config import DataConfig
from rectiflow.data.containers import is_cut
from rectiflow.data.decode import Film, Unusable
from rectiflow.data.film_frames import Bounds, frames_of
from rectiflow.data.films import how_many, inspect_film, read_window, windows
from rectiflow.data.folder import open_folder
from rectiflow.data.given import read_end, read_film
from tests.data.film_files import even, number_in, numbered, write_animation, write_film


def skipped(folder, **settings):
    config = DataConfig(set="folder", dir=str(folder), size=(16, 32), frames=9, max_skipped=1.0, held_out=0, **settings)
    report = open_folder(config).report
    return {what.removeprefix("skipped: "): first for what, _, first in report if what.startswith("skipped: ")}


def black(path, side, aspect):
    """A film of two black frames, whose pixels are `aspect` times as wide as high."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((side * 3 // 2, side), 128, np.uint8), format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def made(monkeypatch):
    """How often a frame is made a picture."""
    count, plain = [], film_frames._frame

    def counted(*told):
        frame = plain(*told)
        return frame._replace(image=lambda: count.append(1) or frame.image())

    monkeypatch.setattr(film_frames, "_frame", counted)
    return count


@pytest.mark.parametrize("check", ["decode", "header"])
def test_enormous_frames_are_never_made_pictures(tmp_path, made, check):
    """A few kilobytes are 268 million pixels, once these are square."""
    path = black(tmp_path / "0.mp4", 4096, 16)
    write_film(tmp_path / "1.mp4", even(20))
    assert path.stat().st_size < 100_000
    with pytest.raises(Unusable, match="enormous"):
        inspect_film(path, check == "decode")
    with pytest.raises(InputError, match=r"0\.mp4: enormous"):
        read_end(path, 1, (3, 9, 16, 32))
    assert not made
    assert skipped(tmp_path, check=check) == {"enormous": "0.mp4"}


@pytest.mark.parametrize(
    ("size", "most", "words"),
    [
        ({"_LARGEST": 511}, 20, "enormous"),
        ({"_MOST": 20 * 512 - 1}, 20, "more than 10,239 pixels in all"),
        ({}, 19, "more than 19 frames"),
    ],
)
def test_a_film_beyond_what_is_read_of_it(tmp_path, monkeypatch, made, size, most, words):
    path = write_film(tmp_path / "x.mp4", even(20))
    assert read_film(path, 3, (16, 32), 20, 5).length == 20
    made.clear()
    for name, value in size.items():
        monkeypatch.setattr(given, name, value)
    with pytest.raises(InputError, match=rf"{words}; expected a film, .* of at most {most} frames") as refused:
        read_film(path, 3, (16, 32), most, 5)
    assert not made
    assert "\n" not in str(refused.value)


def test_frames_that_are_never_shown_are_counted(tmp_path):
    """Thirty frames at one time: only the first is given, but each has to be decoded."""
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "g": "1"})
        stream.height, stream.width, stream.pix_fmt = 16, 32, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(numbered(number), format="rgb24") for number in range(30)]
        for number, frame in enumerate(frames):
            frame.pts = number
        for packet in [packet for frame in [*frames, None] for packet in stream.encode(frame)]:
            packet.pts = packet.dts = 0
            container.mux(packet)
    assert len(list(frames_of(path))) == 1
    for bounds in (Bounds(frames=29), Bounds(whole=29 * 512)):
        with pytest.raises(Unusable, match="more than"):
            list(frames_of(path, bounds=bounds))


@pytest.mark.parametrize("length", [1, 2])
def test_a_gif_whose_later_block_is_damaged_is_skipped(tmp_path, length):
    path = write_animation(tmp_path / "0.gif", [100] * 12)
    content = path.read_bytes()
    place = content.index(b"\x21\xf9\x04", content.index(b"\x21\xf9\x04") + 1)
    block = b"\x21\xf9" + bytes([length]) + content[place + 3 : place + 3 + length] + b"\0"
    path.write_bytes(content[:place] + block + content[place + 8 :])
    assert not is_cut(path)
    write_film(tmp_path / "1.mp4", even(20))
    assert skipped(tmp_path) == {"truncated or damaged": "0.gif"}


def test_a_film_of_impossible_times_is_skipped_and_no_list_made_of_it(tmp_path):
    """Its frames are said to be 100 s apart."""
    path = write_film(tmp_path / "0.mp4", even(20), options={"bf": "0"})
    content = bytearray(path.read_bytes().replace(b"edts", b"free"))
    head, table = content.index(b"mdhd"), content.index(b"stts")
    content[head + 16 : head + 20] = struct.pack(">I", 1)  # ticks a second
    assert struct.unpack(">II", content[table + 8 : table + 16]) == (1, 20)
    content[table + 16 : table + 20] = struct.pack(">I", 100)
    path.write_bytes(content)
    film = inspect_film(path, whole=False).film
    assert how_many(film, 9, None) == (2, 2)
    write_film(tmp_path / "1.mp4", even(20))
    assert skipped(tmp_path, rate=10) == {"stands still nearly all the time, or its times are wrong": "0.mp4"}
    for end, gap, rate in ((2.0**31, 0.1, None), (2.0**31, 0.1, 10.0), (60.0, 1e-5, None)):
        with pytest.raises(Unusable, match="stands still"):
            windows(Film(0.0, end, gap, 1 / gap, 20, True, False), 9, rate)
    # Pictures that are each shown for some seconds are a film all the same.
    assert how_many(Film(0.0, 40.0, 2.0, 0.5, 20, False, False), 9, 24.0) == divmod(961, 9)


def test_a_frame_that_cannot_be_made_a_picture_is_named(tmp_path, monkeypatch):
    path = write_film(tmp_path / "x.mp4", even(20))
    window = windows(inspect_film(path, whole=True).film, 9, None)[0]

    class Odd:
        def reformat(self, frame, **told):
            raise ValueError("conversion to numpy array is not yet supported")

    monkeypatch.setattr(av.video.reformatter, "VideoReformatter", Odd)
    for read in (
        lambda: inspect_film(path, whole=True),
        lambda: read_window(path, window, DataConfig(set="folder"), (3, 9, 16, 32), (0.5, 0.5, 1.0)),
    ):
        with pytest.raises(Unusable, match="cannot be converted"):
            read()


def cut(path):
    """A film without the bytes of its last frame, which no decoder misses."""
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:last])
    return path


def test_a_film_whose_end_is_missing_is_not_gone_on_from(tmp_path):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 32, "yuv420p"
        for number in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode())
    assert read_film(path, 3, (16, 32), 100).length == 20
    assert len(list(frames_of(cut(path)))) == 19
    with pytest.raises(InputError, match="truncated or damaged; expected a film"):
        read_film(path, 3, (16, 32), 100)
    with pytest.raises(InputError, match="truncated or damaged; expected a film"):
        read_end(path, 5, (3, 9, 16, 32))


@pytest.mark.parametrize(
    "rest",
    [b"\x12\x34", b"GoPro!!!" * 40, b"\x7f\xff\xff\xffbeam" + bytes(40), bytes(100)],
    ids=["two bytes", "words", "a box of a length that cannot be", "zeros"],
)
def test_what_a_camera_writes_behind_the_film_does_not_cut_it(tmp_path, rest):
    path = write_film(tmp_path / "x.mp4", even(20))
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    assert not is_cut(path)
    assert inspect_film(path, whole=True).film.frames == 20
    path.write_bytes(whole[:-1])
    assert is_cut(path)
    inner = struct.pack(">I", 16) + b"beam" + bytes(8)  # a box that nobody knows, and the film's own behind it
    place = int.from_bytes(whole[:4], "big")
    path.write_bytes(whole[:place] + inner + whole[place:-1])
    assert is_cut(path)


def test_a_relative_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a:b.mp4"
    write_film(path, even(20))
    short = path.relative_to(tmp_path)
    assert inspect_film(short, whole=False).film.frames == 20
    pixels = read_film(short, 3, (16, 32), 20).frames
    assert [number_in(frame.numpy()) for frame in pixels] == list(range(20))
    save_clip(pixels, short, 10, {}, scale=1)
    assert len(list(frames_of(short))) == 20


def test_a_container_that_does_not_time_each_frame_is_decoded(tmp_path, monkeypatch):
    path = write_film(tmp_path / "x.mp4", even(20))
    plain = film_frames._film

    @contextmanager
    def untimed(path, *told):
        with plain(path, *told) as (container, stream):
            some = SimpleNamespace(size=1, is_discard=False, pts=None, duration=1)
            yield SimpleNamespace(format=container.format, demux=lambda stream: [some]), stream

    with monkeypatch.context() as patch:
        patch.setattr(film_frames, "_film", untimed)
        assert film_frames.packet_times(path) is None
    monkeypatch.setattr("rectiflow.data.films.packet_times", lambda path: None)
    assert inspect_film(path, whole=False).film == inspect_film(path, whole=True).film
