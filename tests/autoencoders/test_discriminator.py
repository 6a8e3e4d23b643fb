"""The discriminator of patches: what a logit sees, and that a sample's logits are its own."""

import pytest
import torch
from torch import nn

from rectiflow.autoencoders.discriminator import Discriminator, most_layers
from rectiflow.base.errors import InputError


def network(channels: int = 3, width: int = 4, layers: int = 3) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels, width, layers)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_the_docstring_says(layers, field):
    """The support of a middle logit's gradient, without norms, whose statistics reach over the picture."""
    judge = network(1, 2, layers)
    side = 4 * field
    for block in judge.blocks:
        block.norm = nn.Identity()
    x = pictures(1, 1, side, side).requires_grad_()
    logits = judge(x)
    middle = logits.shape[-1] // 2
    (slope,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    for axis in (0, 1):
        touched = (slope[0, 0] != 0).any(axis).nonzero().flatten()
        assert int(touched[-1] - touched[0]) + 1 == field == 9 * 2**layers - 2


def test_norms_reach_over_the_whole_picture_but_not_into_another():
    x = pictures(3, 3, 96, 96).requires_grad_()
    (slope,) = torch.autograd.grad(network()(x)[1].sum(), x)
    assert (slope[1, :, 0, 0] != 0).any()
    assert slope[0].abs().max() == slope[2].abs().max() == 0


@pytest.mark.parametrize("training", [True, False])
def test_logits_do_not_depend_on_the_batch(training):
    """A norm over the batch would fail by far: the other pictures are brighter and of more contrast."""
    judge = network().train(training)
    x = pictures(2, 3, 32, 40)
    others = 3 * pictures(5, 3, 32, 40, seed=1) + 1
    alone, among = judge(x).detach(), judge(torch.cat([others, x])).detach()[-2:]
    assert among == pytest.approx(alone, abs=1e-5)
    assert float(alone.std()) > 1e-2
    first, second = judge(x[:1]).detach(), judge(x[1:]).detach()
    assert torch.cat([first, second]) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("layers", "height", "width"), [(1, 6, 9), (2, 16, 16), (2, 12, 35), (3, 24, 64), (3, 71, 40)])
def test_the_map_is_of_the_stated_size(layers, height, width):
    judge = network(1, 8, layers)
    logits = judge(pictures(2, 1, height, width))
    assert logits.shape == (2, 1, height // 2**layers - 2, width // 2**layers - 2)
    assert len(judge.blocks) == layers


def test_the_paper_s_sizes():
    """pix2pix's 70×70 discriminator of one picture of 3 channels: 2.77 million weights, its norms affine."""
    judge = Discriminator(3)
    convolutions = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    expected = sum(16 * a * b + b for a, b in convolutions) + 2 * (128 + 256 + 512)
    assert sum(weights.numel() for weights in judge.parameters()) == expected
    assert not list(judge.buffers()), "running statistics would tie samples together"


def test_pictures_too_small_are_refused_with_what_would_do():
    for side in range(6, 60):
        layers = most_layers(side)
        assert network(1, 2, layers)(torch.zeros(1, 1, side, side)).numel() > 0
        if layers < 3:
            with pytest.raises(InputError, match=f"received {side}; use layers={layers} or larger"):
                network(1, 2, layers + 1)(torch.zeros(1, 1, side, side))
    assert [most_layers(side) for side in (6, 11, 12, 16, 23, 24, 512)] == [1, 1, 2, 2, 2, 3, 3]
    assert most_layers(512, most=5) == 5
    with pytest.raises(InputError, match=r"at least 6 pixels a side, received 5; set a larger data\.size, or disc"):
        most_layers(5)
    with pytest.raises(InputError, match="received 5"):
        network(1, 2, 1)(torch.zeros(1, 1, 5, 32))
    with pytest.raises(InputError, match="at least 1, received 3, 64 and 0"):
        Discriminator(3, layers=0)
