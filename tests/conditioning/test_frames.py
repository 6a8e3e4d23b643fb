"""Frames of a clip as a condition: what is drawn, told and put back."""

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.conditioning.frames import Given, given_frames, put_back, told
from rectiflow.conditioning.frames_config import FramesConfig

KEY = Key(0, "frames")


def drawn(length=5, count=4000, **weights):
    return Given.drawn(FramesConfig(**weights), KEY, torch.arange(count), length)


def test_what_is_given_has_the_shares_of_its_weights():
    given = drawn(nothing=4, first=3, last=1, both=1, beginning=1)
    pairs = [(given.beginning == begins) & (given.end == ends) for begins, ends in ((0, 0), (1, 0), (0, 1), (1, 1))]
    shares = [float(pair.float().mean()) for pair in pairs] + [float((given.beginning > 1).float().mean())]
    assert shares == pytest.approx([0.4, 0.3, 0.1, 0.1, 0.1], abs=0.025)


def test_a_weight_of_zero_is_never_drawn():
    given = drawn(nothing=0, first=0, last=0, both=1, beginning=0)
    assert bool((given.beginning == 1).all())
    assert bool(given.end.all())


def test_a_beginning_never_is_all():
    given = drawn(nothing=0, first=0, last=0, both=0, beginning=1)
    assert set(given.beginning.tolist()) == {2, 3, 4}
    assert not given.end.any()
    assert set(drawn(2, nothing=0, first=0, last=0, both=0, beginning=1).beginning.tolist()) == {1}


def test_a_still_is_given_nothing():
    given = drawn(1, nothing=0, first=1, both=1, last=1, beginning=1)
    assert not given.beginning.any()
    assert not given.end.any()


def test_draws_are_of_the_sample_alone():
    whole, part = drawn(), Given.drawn(FramesConfig(), KEY, torch.tensor([7, 3]), 5)
    assert torch.equal(whole.beginning[[7, 3]], part.beginning)
    assert torch.equal(whole.end[[7, 3]], part.end)


def test_told_are_clean_latents_where_the_mask_is_one_and_zeros_elsewhere():
    latents, last = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 1, 2, 2)
    image = told(latents, last, Given(torch.tensor([2, 0]), torch.tensor([False, True])))
    assert image.shape == (2, 4, 4, 2, 2)
    assert image[:, -1, :, 0, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]
    assert torch.equal(image[0, :3, :2], latents[0, :, :2])
    assert torch.equal(image[1, :3, 3:], last[1])
    assert not image[0, :3, 2:].any()
    assert not image[1, :3, :3].any()


def test_what_a_user_gives_is_told_as_in_training():
    latents, last = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 1, 2, 2)
    for begins, ends in ((2, True), (1, False), (0, True)):
        trained = told(latents, last, Given(torch.full((2,), begins), torch.full((2,), ends)))
        asked = given_frames(latents[:, :, :begins] if begins else None, last if ends else None, (2, 3, 4, 2, 2))
        assert torch.equal(trained, asked)


def test_the_beginning_is_put_back_and_the_end_is_not():
    latents, made, last = (torch.randn(1, 3, n, 2, 2) for n in (4, 4, 1))
    image = told(latents, last, Given(torch.tensor([2]), torch.tensor([True])))
    kept = put_back(made, image)
    assert torch.equal(kept[:, :, :2], latents[:, :, :2])
    assert torch.equal(kept[:, :, 2:], made[:, :, 2:])
    nothing = told(latents, last, Given(torch.tensor([0]), torch.tensor([False])))
    assert torch.equal(put_back(made, nothing), made)


def test_weights_that_draw_nothing_are_refused():
    with pytest.raises(InputError, match="give one of them a weight"):
        FramesConfig.parse(dict.fromkeys(("nothing", "first", "last", "both", "beginning"), 0), "frames")
