"""Every kind of file comes out as the pixels that a person would say it shows."""

import numpy as np
import pytest
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, background, decode, inspect

CENTRE = (0.5, 0.5)


def decoded(path, size=(4, 4), grey=False, place=CENTRE, **settings):
    return decode(path, DataConfig(**settings), size, grey, place)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (200, 100, 50), (200, 100, 50)),
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I", 300, (1, 1, 1)),
        ("F", 0.5, (128, 128, 128)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBA", (200, 100, 50, 0), (255, 0, 0)),
        ("LA", (90, 0), (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_modes(tmp_path, mode, value, expected):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I", "F", "I;16") else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(path)
    else:
        Image.new(mode, (4, 4), value).save(path)
    pixels = decoded(path, background="red")
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 2, 4))
    image.save(tmp_path / "x.gif", transparency=0)
    pixels = decoded(tmp_path / "x.gif", background="#0000ff")
    assert pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert pixels[:, 0, 3].tolist() == [10, 200, 30]


def test_one_channel_from_colour(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "x.png")
    assert decoded(tmp_path / "x.png", grey=True).tolist() == [[[76] * 4] * 4]  # ITU-R 601: 0.299


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn):
    """All eight: the picture comes out as it was before the camera was turned."""
    upright = np.zeros((8, 16), np.uint8)
    upright[:4, :4] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    facts = inspect(tmp_path / "x.png", whole=True)
    assert (facts.height, facts.width, facts.grey) == (8, 16, True)
    assert (decoded(tmp_path / "x.png", (8, 16), grey=True)[0] == upright).all()


def test_crops(tmp_path):
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "x.png")
    for place, first in (((0, 0), 0), (CENTRE, 8), ((1, 1), 16)):
        assert (decoded(tmp_path / "x.png", (8, 8), True, place)[0] == ramp[:, first : first + 8]).all()


def test_resizing_is_antialiased(tmp_path):
    """Stripes finer than the new pixels become grey; a nearest neighbour would keep black or white."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "x.png")
    for name in ("lanczos", "bicubic", "bilinear", "box"):
        pixels = decoded(tmp_path / "x.png", (8, 8), True, filter=name)
        assert abs(pixels[0].astype(int) - 127).max() < 20


def test_a_big_jpeg_keeps_its_content(tmp_path):
    image = Image.new("RGB", (1600, 800), (30, 60, 200))
    image.paste((220, 40, 20), (0, 0, 800, 800))
    image.save(tmp_path / "x.jpg", quality=95)
    pixels = decoded(tmp_path / "x.jpg", (16, 32)).astype(int)
    assert abs(pixels[:, 8, 2] - [220, 40, 20]).max() < 12
    assert abs(pixels[:, 8, 30] - [30, 60, 200]).max() < 12


def test_facts_without_decoding_miss_only_truncation(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert inspect(tmp_path / "cut.png", whole=False).height == 64
    with pytest.raises(Unusable, match="truncated or damaged"):
        inspect(tmp_path / "cut.png", whole=True)


def test_digest_is_of_the_content(tmp_path):
    for name, colour in (("a", 1), ("b", 1), ("c", 2)):
        Image.new("L", (4, 4), colour).save(tmp_path / f"{name}.png")
    a, b, c = (inspect(tmp_path / f"{name}.png", whole=False).digest for name in "abc")
    assert a == b != c


def test_background_names():
    assert background("#102030") == (16, 32, 48)
    with pytest.raises(InputError, match="'whit' is no colour"):
        background("whit")


def gradient(path, height=40, width=60):
    """A picture whose red says the column and whose green says the row."""
    rows, columns = np.mgrid[:height, :width]
    Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.5), (1.0, 1.0, 0.0), (0.3, 0.8, 1.0)])
def test_a_window_at_full_scale_has_the_pictures_own_pixels(tmp_path, place):
    found = decoded(gradient(tmp_path / "x.png"), (8, 10), place=place, crop="random", scale=(1, 1))
    top, left = round(32 * place[0]), round(50 * place[1])
    rows, columns = np.mgrid[top : top + 8, left : left + 10]
    assert np.array_equal(found[0], columns)
    assert np.array_equal(found[1], rows)


def test_a_window_at_half_scale_spans_twice_as_much(tmp_path):
    found = decoded(gradient(tmp_path / "x.png"), (8, 10), place=(0, 0, 0.5), crop="random", scale=(0.25, 1))
    assert found.shape == (3, 8, 10)  # half way from a quarter to one in the logarithm: one half
    steps = np.diff(found[0].astype(int), axis=1)[:, 1:-1]
    assert abs(steps.mean() - 2) < 0.1


def test_a_window_never_reaches_beyond_the_picture(tmp_path):
    found = decoded(gradient(tmp_path / "x.png"), (20, 20), place=(0, 0, 0), crop="random", scale=(0.01, 1))
    assert np.array_equal(found, decoded(tmp_path / "x.png", (20, 20), place=(0, 0, 0)))  # just covers


def test_a_scale_needs_random_crops():
    with pytest.raises(InputError, match=r"scale \(0.5, 1.0\) needs crop=random"):
        DataConfig.parse({"scale": (0.5, 1)}, "--set")
