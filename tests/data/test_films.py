"""Films: which frame is taken when, and exactly that one, from every container."""

import bisect
import itertools
import os
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rectiflow.data import film_frames
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable
from rectiflow.data.film_frames import Frame, frames_of, taken
from rectiflow.data.films import Window, how_many, inspect_film, read_window, windows
from tests.data.film_files import even, number_in, write_animation, write_film

UNEVEN = [0.0, 0.1, 0.13, 0.3, 0.34, 0.5, 0.9, 0.95, 1.0, 1.1, 1.2, 1.3, 1.6, 1.65, 1.7, 1.8, 1.9, 2.0, 2.4, 2.5]
LONG = even(200)
CENTRE = (0.5, 0.5, 1.0)
FILMS = {
    "B-frames and long groups.mp4": (LONG, "libx264", {"g": "60", "bf": "3", "sc_threshold": "0"}),
    "open groups.mp4": (LONG, "libx264", {"g": "30", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-pyramid=2"}),
    "one key frame.mkv": (LONG, "libx264", {"g": "1000", "bf": "3", "sc_threshold": "0"}),
    "no key frames.mp4": (LONG, "libx264", {"g": "40", "x264-params": "intra-refresh=1"}),
    "30 a second, ms.webm": (even(100, 30), "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": (
        even(60, 25),
        "libvpx",
        {"g": "20", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"},
    ),
    "av1.mp4": (even(40), "libsvtav1", {"g": "10", "preset": "12"}),
    "hevc.mp4": (LONG, "libx265", {"g": "30", "x265-params": "log-level=none"}),
    "mpeg4.avi": (LONG, "mpeg4", {"g": "40", "qscale": "2", "flags": "+qscale"}),
    "B-frames.avi": (even(100), "mpeg4", {"g": "20", "bf": "2"}),
    "mpeg4.mov": (even(60), "mpeg4", {"g": "20", "bf": "2"}),
    "uneven.mp4": (UNEVEN, "libx264", {"g": "7", "bf": "2"}),
    "uneven.webm": (UNEVEN, "libvpx-vp9", {"g": "7", "deadline": "realtime", "cpu-used": "8"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


def film(folder, name):
    times, codec, options = FILMS[name]
    path = folder / name
    return (path if path.exists() else write_film(path, times, codec, options=options)), times


def numbers(path, start, rate, gap, count=1):
    clip = read_window(path, Window(start, rate, gap), DataConfig(set="folder"), (3, count, 16, 32), CENTRE)
    return [number_in(np.moveaxis(frame, 0, -1)) for frame in np.moveaxis(clip, 1, 0)]


@pytest.mark.parametrize("name", FILMS)
def test_every_frame_is_fetched_exactly(folder, name):
    """By its own time, entering the film anew for each, in an order that goes forth and back."""
    path, times = film(folder, name)
    facts = inspect_film(path, whole=True)
    assert facts.film.frames == len(times)
    order = np.random.default_rng(0).permutation(len(times))[:60]
    for number in [0, len(times) - 1, *order.tolist()]:
        assert numbers(path, facts.film.first + times[number], 1, facts.film.gap) == [number]


@pytest.mark.parametrize("name", FILMS)
def test_windows_are_all_frames_one_after_another(folder, name):
    path, times = film(folder, name)
    if "uneven" in name:
        return
    facts = inspect_film(path, whole=True).film
    assert facts.rate == pytest.approx(1 / (times[1] - times[0]), rel=1e-3)
    assert not facts.varies
    some = windows(facts, 9, None)
    assert (len(some), how_many(facts, 9, None)) == (len(times) // 9, divmod(len(times), 9))
    assert [n for w in some for n in numbers(path, w.start, w.rate, w.gap, 9)] == list(range(9 * len(some)))


@pytest.mark.parametrize("name", FILMS)
def test_the_container_alone_says_the_same_times(folder, name):
    path, _ = film(folder, name)
    whole, head = inspect_film(path, whole=True), inspect_film(path, whole=False)
    assert head.film.frames == whole.film.frames
    assert head.film.first == pytest.approx(whole.film.first, abs=1e-6)
    assert head.film.gap == pytest.approx(whole.film.gap, abs=1e-6)


@pytest.mark.parametrize("rate", [2.5, 5.0, 7.0, 20.0])
def test_another_rate_takes_the_nearest_frames(folder, rate):
    path, times = film(folder, "B-frames and long groups.mp4")
    facts = inspect_film(path, whole=True).film
    for window in windows(facts, 17, rate):
        instants = window.start + np.arange(17) / rate
        off = np.abs(instants[:, None] - np.array(times))
        got = numbers(path, *window, 17)
        assert (off[np.arange(17), got] <= off.min(1) + 1e-6).all()


def test_uneven_times_are_taken_not_counted(folder):
    path, times = film(folder, "uneven.mp4")
    facts = inspect_film(path, whole=True).film
    assert facts.varies
    window = windows(facts, 25, 10)[0]
    shown = [max(n for n, time in enumerate(times) if time <= i / 10 + 0.05 + 1e-6) for i in range(25)]
    got = numbers(path, *window, 25)
    assert all(abs(a - b) <= 1 for a, b in zip(got, shown, strict=True))
    assert got == [reference(times, i / 10, facts.gap) for i in range(25)]


def reference(times, instant, gap):
    """Frame j + 1 from half of min(gap, its distance from frame j) before it is shown."""
    switches = [b - min(gap, b - a) / 2 for a, b in itertools.pairwise(times)]
    return bisect.bisect_left(switches, instant - 1e-6)


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 20), st.integers(1, 40), st.integers(0, 400)
)
def test_frames_are_taken_by_their_times(gaps, gap, step, start):
    times = np.cumsum([0, *gaps]).tolist()
    instants = [start + i * step for i in range(10) if start + i * step <= times[-1] + gap / 2]
    frames = iter([Frame(float(time), 0.0, Image.Image) for time in times])
    if not instants:
        return
    got = [times.index(frame.time) for frame in taken(frames, instants, gap)]
    assert got == [reference(times, instant, gap) for instant in instants]
    if max(gaps) <= gap:  # the nearest, then
        off = np.abs(np.array(instants)[:, None] - np.array(times))
        assert (off[np.arange(len(instants)), got] == off.min(1)).all()


@pytest.mark.parametrize("kind", [".gif", ".webp"])
def test_animated_pictures(tmp_path, kind):
    """Their frames may last unequally long."""
    lasts = [40, 40, 120, 40, 40, 40, 200, 40, 40, 40]
    path = write_animation(tmp_path / f"x{kind}", lasts)
    facts = inspect_film(path, whole=True)
    assert (facts.height, facts.width, facts.film.frames) == (16, 32, 10)
    assert facts.film.varies
    assert facts.film.rate == pytest.approx(25)
    window = windows(facts.film, 13, None)[0]
    shown = [number for number, last in enumerate(lasts) for _ in range(last // 40)]
    assert numbers(path, *window, 13) == shown[:13]


def test_an_animated_picture_of_one_frame_is_a_picture(tmp_path):
    assert inspect_film(write_animation(tmp_path / "x.gif", [100]), whole=True).film is None


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_films_are_turned(tmp_path, turn):
    path = write_film(tmp_path / "x.mp4", even(30), turn=turn, options={"g": "10", "bf": "2"})
    facts = inspect_film(path, whole=True)
    assert facts.film.turned
    assert (facts.height, facts.width) == ((16, 32) if turn == 180 else (32, 16))
    shape = (3, 5, facts.height, facts.width)
    clip = read_window(path, windows(facts.film, 5, None)[3], DataConfig(set="folder"), shape, CENTRE)
    back = np.rot90(np.moveaxis(clip, 0, -1), -turn // 90, (1, 2))
    assert [number_in(frame) for frame in back] == list(range(15, 20))


def test_frames_with_a_later_beginning(tmp_path):
    path = write_film(tmp_path / "x.mkv", [3 + time for time in even(40)], options={"g": "10", "bf": "2"})
    facts = inspect_film(path, whole=True).film
    assert facts.first == pytest.approx(3, abs=0.01)
    assert [n for w in windows(facts, 5, None) for n in numbers(path, *w, 5)] == list(range(40))


def test_all_frames_have_one_crop_and_the_sizes_of_pictures(tmp_path):
    """A frame is resized and cropped as a picture file of its pixels is."""
    from rectiflow.data.decode import decode

    path = write_film(tmp_path / "x.mp4", even(10), size=(48, 80), options={"crf": "10"})
    config = DataConfig(set="folder", crop="random")
    place = (0.2, 0.9, 1.0)
    clip = read_window(path, Window(0, 10, 0.1), config, (3, 5, 20, 20), place)
    for number, frame in zip(range(5), frames_of(path), strict=False):
        frame.image().save(tmp_path / "frame.png")
        assert np.array_equal(clip[:, number], decode(tmp_path / "frame.png", config, (20, 20), False, place))


@pytest.mark.parametrize(
    ("aspect", "kept"), [(None, True), (Fraction(16), True), (Fraction(17), False), (Fraction(1, 2**20), False)]
)
def test_pixels_of_an_absurd_shape_are_refused_before_they_are_made_square(tmp_path, monkeypatch, aspect, kept):
    """A container may say anything: 64 pixels a million times as wide as high would be gigabytes."""
    path, plain = write_film(tmp_path / "x.mp4", even(2)), film_frames._film

    @contextmanager
    def film(*told):
        with plain(*told) as (container, stream):
            kept = {name: getattr(stream, name) for name in ("average_rate", "time_base", "codec_context")}
            yield (
                SimpleNamespace(format=container.format, demux=lambda _: container.demux(stream)),
                SimpleNamespace(sample_aspect_ratio=aspect, **kept),
            )

    monkeypatch.setattr(film_frames, "_film", film)
    if kept:
        assert next(frames_of(path)).image().width == 32 * (aspect or 1)
    else:
        with pytest.raises(Unusable, match="times as wide as high"):
            next(frames_of(path))


def test_a_file_that_names_others_is_no_film(tmp_path):
    write_film(tmp_path / "film.mp4", even(4))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile film.mp4\n")
    with pytest.raises(Unusable, match="damaged"):
        list(frames_of(tmp_path / "list.mp4"))


def test_a_film_that_has_become_shorter(tmp_path):
    path = write_film(tmp_path / "x.mp4", even(20))
    with pytest.raises(Unusable, match="shorter than it was"):
        numbers(path, 1.5, 10, 0.1, 9)


def test_no_more_is_decoded_than_the_window_needs(folder, monkeypatch):
    """From the key frame before it (each 60th) to one frame behind it, plus what the decoder reorders."""
    from rectiflow.data import film_frames

    path, _ = film(folder, "B-frames and long groups.mp4")
    seen = []
    plain = film_frames._frame
    monkeypatch.setattr(film_frames, "_frame", lambda *told: seen.append(told[1]) or plain(*told))
    assert numbers(path, 13, 10, 0.1, 5) == list(range(130, 135))
    assert min(seen) >= 12
    assert max(seen) < 14.5


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux alone has it")
def test_writing_films_leaves_this_process_as_it_was_scheduled(tmp_path):
    """Else all that runs beside it, a browser say, stands still for as long as it works."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    write_film(tmp_path / "x.mp4", even(10), "libsvtav1", options={"preset": "12"})
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
