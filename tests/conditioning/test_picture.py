"""What is given of a picture, exactly, and that it can be taken back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.conditioning.picture import check_given, degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.pictures import to_uint8

KEY = Key(0, "test")


def levels(*shape):
    """Pictures of 256 levels in [−1, 1]."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draws) / 127.5 - 1


def of(kind, **settings):
    return degradation(PictureConfig(kind=kind, **settings))


@pytest.mark.parametrize(("kind", "channels", "shape"), [("low", 3, (3, 4, 6)), ("grey", 1, (1, 8, 12))])
def test_shapes_of_what_is_given_and_told(kind, channels, shape):
    x, way = levels(2, 3, 8, 12), of(kind)
    y = way.given(x, KEY, torch.arange(2))
    assert tuple(y.shape[1:]) == way.shape((3, 8, 12)) == shape
    told = way.told(y)
    assert tuple(told.shape) == (2, channels + 1, 8, 12)
    assert way.channels(3) == channels
    assert bool((told[:, -1] == 1).all())
    assert torch.equal(way.again(x, y), y)


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_what_is_told_of_a_low_picture_can_be_taken_back_to_the_bit(factor, rows, columns):
    way, y = of("low", factor=factor), levels(2, 3, rows, columns)
    told = way.told(y)[:, :-1]
    assert torch.equal(told[..., ::factor, ::factor], y)
    assert torch.allclose(way.given(told, KEY, torch.arange(2)), y, rtol=0, atol=1e-6)


def test_grey_is_the_grey_of_files():
    x = levels(4, 3, 16, 16)
    ours = to_uint8(of("grey").given(x, KEY, torch.arange(4)))[..., 0].numpy().astype(int)
    theirs = np.stack([np.array(Image.fromarray(p.numpy()).convert("L")) for p in to_uint8(x)]).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_a_rectangle_hides_between_the_least_and_the_most_everywhere_and_by_its_key(height, width):
    way, index = of("masked", least=0.1, most=0.4), torch.arange(2000)
    x = levels(2000, 1, height, width)
    y = way.given(x, KEY, index)
    hidden = y[:, -1] == 0
    share = hidden.double().mean((1, 2))
    # Sides are whole pixels: a rectangle is off by half a row and half a column at most.
    slack = 0.5 / height + 0.5 / width
    assert 0.1 - slack < float(share.min()) < float(share.max()) < 0.4 + slack
    assert float(share.mean()) == pytest.approx(0.25, abs=0.01)
    rows, columns = hidden.any(2), hidden.any(1)
    assert torch.equal(hidden, rows[:, :, None] & columns[:, None])  # a product, and both are stretches:
    assert bool((rows.long().diff(dim=1).abs().sum(1) <= 2).all())
    often = hidden.double().mean(0)
    assert float((often - often.flip(0)).abs().max()) < 0.06
    assert float((often - often.flip(1)).abs().max()) < 0.06
    assert float(often.min()) > 0.005
    assert torch.equal(way.given(x[700:703], KEY, index[700:703]), y[700:703])
    assert not torch.equal(way.given(x, Key(1, "test"), index), y)


def test_what_is_given_of_a_masked_picture_is_put_back_exactly_and_the_rest_kept():
    way, x = of("masked"), levels(3, 3, 8, 8)
    y = way.given(x, KEY, torch.arange(3))
    made = torch.zeros_like(x)
    whole = way.put_back(made, y)
    seen = (y[:, -1:] == 1).expand_as(x)
    assert torch.equal(whole[seen], x[seen])
    assert bool((whole[~seen] == 0).all())
    assert torch.equal(way.again(whole, y), y)
    for kind in ("low", "grey", "paired"):
        assert torch.equal(of(kind).put_back(made, x), made)


def test_plain_readings_have_the_shape_of_the_picture():
    x = levels(2, 3, 8, 8)
    for kind, names in {"low": ["nearest", "bicubic"], "grey": ["grey"], "masked": ["mean colour"]}.items():
        plain = of(kind).plain(of(kind).given(x, KEY, torch.arange(2)), 3)
        assert list(plain) == names
        assert all(each.shape == x.shape for each in plain.values())


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [("low", (1, 8, 9), "does not divide 8×9; the nearest size is 8×8"), ("grey", (1, 8, 8), "coloured")],
)
def test_pictures_of_which_nothing_can_be_given_are_refused(kind, shape, words):
    with pytest.raises(InputError, match=words):
        of(kind).shape(shape)


def test_another_shape_than_expected_is_refused():
    with pytest.raises(InputError, match="expected N×1×4×4, received 2×1×8×8"):
        check_given(PictureConfig(kind="low"), levels(2, 1, 8, 8), (1, 8, 8))
    check_given(PictureConfig(kind="low"), levels(2, 1, 4, 4), (1, 8, 8))


def test_the_least_is_not_above_the_most():
    with pytest.raises(InputError, match=r"least 0\.6 is above most 0\.5"):
        PictureConfig.parse({"kind": "masked", "least": 0.6}, "picture")
