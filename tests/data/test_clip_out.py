"""Clips into files and back."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digit_clips
from rectiflow.data.clips import clip_grid, film_strip, read_about, save_clip
from rectiflow.data.config import DataConfig
from rectiflow.data.film_frames import frames_of
from rectiflow.data.films import inspect_film
from rectiflow.data.images import to_float
from rectiflow.data.sets import open_set, write_set

ABOUT = {"seed": 3, "prompt": "a “red” 5 – moving", "model": "runs/é" * 60}


def clip(count=9, height=16, width=24, channels=3):
    """Blocks of 4×4 that change from frame to frame, the last two frames alike."""
    blocks = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height // 4 + 1, width // 4 + 1, 3)))
    blocks[-1] = blocks[-2]
    whole = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width, :channels]
    return whole.to(torch.uint8)


def frames(path):
    return torch.from_numpy(np.stack([np.asarray(frame.image().convert("RGB")) for frame in frames_of(path)]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_comes_back_exactly(tmp_path, channels):
    pixels = clip(channels=channels)
    save_clip(pixels, tmp_path / "x.gif", 20, ABOUT, scale=1)
    assert torch.equal(frames(tmp_path / "x.gif"), pixels.expand(-1, -1, -1, 3))
    facts = inspect_film(tmp_path / "x.gif", whole=True).film
    assert (facts.frames, facts.rate, facts.varies) == (9, pytest.approx(20), False)
    assert read_about(tmp_path / "x.gif") == ABOUT
    with Image.open(tmp_path / "x.gif") as image:
        assert image.info["loop"] == 0


def test_a_gif_of_many_colours_is_near(tmp_path):
    ramp = torch.arange(256, dtype=torch.uint8)
    picture = torch.stack([ramp.expand(64, 256), ramp.flip(0).expand(64, 256), ramp[::4][:, None].expand(64, 256)], -1)
    save_clip(torch.stack([picture, picture.flip(0)]), tmp_path / "x.gif", 12, {})
    back = frames(tmp_path / "x.gif")[0].float()
    assert (back - picture.float()).abs().mean() < 8
    lasts = [frame.lasts for frame in frames_of(tmp_path / "x.gif")]
    assert sum(lasts) == pytest.approx(2 / 12, abs=0.005)


def test_an_mp4_is_for_any_player_and_near(tmp_path):
    """A whole factor of 8 brings 16×24 to 160×240; the colours come back within a few grey levels."""
    import av

    pixels = clip()
    save_clip(pixels, tmp_path / "x.mp4", 12.5, ABOUT)
    back = frames(tmp_path / "x.mp4")
    assert back.shape == (9, 160, 240, 3)
    centres = back[:, 5::10, 5::10].float()
    assert (centres - pixels.float()).abs().mean() < 3
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.format.name) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
    content = (tmp_path / "x.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert read_about(tmp_path / "x.mp4") == ABOUT
    facts = inspect_film(tmp_path / "x.mp4", whole=True).film
    assert (facts.frames, facts.rate) == (9, pytest.approx(12.5))


def test_odd_sides_of_an_mp4_are_repeated(tmp_path):
    pixels = clip(5, 17, 23)
    save_clip(pixels, tmp_path / "x.mp4", 10, {}, scale=1)
    assert frames(tmp_path / "x.mp4").shape == (5, 18, 24, 3)


def test_frames_in_a_folder(tmp_path):
    pixels = clip(5)
    save_clip(pixels, tmp_path / "x", 10, {"seed": 1})
    files = sorted((tmp_path / "x").glob("*.png"))
    assert len(files) == 5
    for file, picture in zip(files, pixels, strict=True):
        assert np.array_equal(np.array(Image.open(file)), picture.numpy())


def test_clips_side_by_side():
    pixels = torch.stack([clip() + i for i in range(5)])
    sheet = clip_grid(pixels, 3)
    assert sheet.shape == (9, 2 * 17 + 1, 3 * 25 + 1, 3)
    assert torch.equal(sheet[:, 18:34, 26:50], pixels[4])
    assert (sheet[:, 18:34, 51:75] == 96).all()


def test_a_strip_has_the_first_frame_and_the_last():
    pixels = torch.stack([clip() + i for i in range(2)])
    strip = np.array(film_strip(pixels, 3))
    assert strip.shape == (2 * 17 + 1, 3 * 25 + 1, 3)
    for row in range(2):
        for column, number in enumerate((0, 4, 8)):
            top, left = 17 * row + 1, 25 * column + 1
            assert np.array_equal(strip[top : top + 16, left : left + 24], pixels[row, number].numpy())
    assert film_strip(pixels, 99).size == (9 * 25 + 1, 2 * 17 + 1)


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [
        ("x.mp4", 0, "0.1 to 240 frames a second, received 0"),
        ("x.mp4", 1e-4, "received 0.0001"),
        ("x.gif", 1e-3, "received 0.001"),
        ("x.gif", -1, "received -1"),
        ("x", float("nan"), "received nan"),
        ("x.wmv", 10, "expected .mp4"),
    ],
)
def test_bad_requests(tmp_path, name, rate, words):
    with pytest.raises(InputError, match=words) as caught:
        save_clip(clip(), tmp_path / name, rate, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_the_slowest_clip(tmp_path, kind):
    save_clip(clip(3), tmp_path / f"x.{kind}", 0.1, {}, scale=1)
    assert [frame.time for frame in frames_of(tmp_path / f"x.{kind}")] == [0, 10, 20]


LARGE = """
import sys
from pathlib import Path
import torch
from rectiflow.base import machine
from rectiflow.cli.output import Output
cpu, folder = torch.device("cpu"), Path(sys.argv[1])

def more(path, pixels):
    machine.forget_peak(cpu)
    before = machine.peak(cpu)
    Output(folder / path).write(pixels, torch.zeros(len(pixels)), {}, [{}] * len(pixels))
    return machine.peak(cpu) - before

small = torch.zeros(1, 3, 16, 8, 8)
for path in ("x.npz", "x.gif", "x.mp4", "x.png"):
    more(path, small)  # what is loaded for it
wide = torch.zeros(4, 3, 16, 512, 512)
for path in ("x.npz", "x.png"):
    assert more(path, wide) < wide.nbytes, path
for path, frames in (("x.gif", 150), ("x.mp4", 1000)):  # brought to 256 × 256
    assert more(path, torch.zeros(1, 3, frames, 32, 32)) < frames * 3 * 256**2 / 2, path
"""


def test_samples_are_written_within_the_memory_that_they_are_refused_by(tmp_path):
    """As much again as they take themselves; in a process of its own, of which no other test's memory is."""
    subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], check=True)


def test_what_cannot_be_written_leaves_the_former_file(tmp_path, monkeypatch):
    save_clip(clip(), tmp_path / "x.mp4", 10, {})
    before = (tmp_path / "x.mp4").read_bytes()
    with pytest.raises(InputError, match="could not write"):
        save_clip(clip(), tmp_path / "x.mp4" / "y.mp4", 10, {})
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'rectiflow\[video\]'"):
        save_clip(clip(), tmp_path / "x.mp4", 10, {})
    assert (tmp_path / "x.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_digit_clips_as_a_folder_come_back(tmp_path):
    assert write_set("digit-clips", tmp_path / "clips", 6) == {"train": 6, "test": 6}
    config = DataConfig(set="folder", dir=str(tmp_path / "clips"), frames=17)
    back, source = open_set(config), digit_clips()
    assert back.shape == source.shape
    for mine, theirs in ((back.train, source.train), (back.held_out, source.held_out)):
        index = torch.arange(6)
        assert torch.equal(to_float(mine.fetch(index)), to_float(theirs.fetch(index)))
        assert mine.captions(index) == theirs.captions(index)
