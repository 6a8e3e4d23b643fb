import pytest
import torch
import torch.nn.functional as F

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.networks.build import build
from rectiflow.networks.config import UNetConfig
from rectiflow.networks.unet_layers import PixelAttention, ResidualBlock

SMALL = {"channels": 2, "classes": 5, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2}


def randomise(module):
    """Every weight random, so that nothing is hidden by layers that start at zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def random_unet(**changes):
    return randomise(build(UNetConfig(**{**SMALL, **changes})))


def inputs(count=3, height=4, width=6, channels=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, channels, height, width, generator=generator)
    return x, torch.rand(count, generator=generator), Condition(torch.arange(count))


@pytest.mark.parametrize("attention", [(), (1,), (1, 2)])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (4, 10), (12, 2)])
def test_any_size_that_the_levels_divide(attention, height, width):
    x, t, condition = inputs(3, height, width)
    out = random_unet(attention=attention)(x, t, condition)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert out.std() > 0.01


@pytest.mark.parametrize(("size", "near"), [((6, 8), "8×8"), ((4, 9), "4×8"), ((1, 2), "4×4"), ((0, 4), "4×4")])
def test_a_size_that_the_levels_do_not_divide(size, near):
    x, t, condition = inputs(3, *size)
    with pytest.raises(InputError, match=f"^4, by which 3 levels .* does not divide .* nearest size is {near}.$"):
        random_unet(multipliers=(1, 1, 1))(x, t, condition)


def test_wrong_channels():
    _, t, condition = inputs()
    with pytest.raises(InputError, match="2 channels, received 3"):
        random_unet()(torch.zeros(3, 3, 4, 4), t, condition)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_latents_of_any_channels(channels):
    x, t, condition = inputs(channels=channels)
    assert random_unet(channels=channels)(x, t, condition).shape == x.shape


def test_a_fresh_network_is_small_and_learns():
    torch.manual_seed(0)
    network = build(UNetConfig(**SMALL))
    x, t, condition = inputs()
    assert 0 < network(x, t, condition).std() < 1
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):  # the layers that start at zero open one after another
        optimiser.zero_grad()
        ((network(x, t, condition) - x) ** 2).mean().backward()
        optimiser.step()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_gradient_against_finite_differences():
    network = random_unet(width=4, heads=1, channels=1).double()
    x, t, condition = inputs(1, 2, 4, channels=1)
    # Times enter as float32 sinusoids, so only the picture is differentiated.
    network.embedding.time.map[0].register_forward_pre_hook(lambda _, args: (args[0].double(),))
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x, t, condition), (x,), atol=1e-6)


def test_residual_block_is_its_formula():
    block = randomise(ResidualBlock((32, 16), 8, heads=0, dropout=0.0))
    x, c = torch.randn(2, 32, 4, 5), torch.randn(2, 8)
    w = dict(block.named_parameters())
    h = F.silu(F.group_norm(x, 2, w["norm_in.weight"], w["norm_in.bias"]))
    h = F.group_norm(F.conv2d(h, w["conv_in.weight"], w["conv_in.bias"], padding=1), 1)
    scale, shift = (c @ w["modulation.weight"].T + w["modulation.bias"]).split(16, dim=1)
    h = F.silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    h = F.conv2d(h, w["conv_out.weight"], w["conv_out.bias"], padding=1)
    expected = F.conv2d(x, w["skip.weight"], w["skip.bias"]) + h
    assert torch.allclose(block(x, c), expected, atol=1e-5)


def test_attention_is_its_formula():
    layer = randomise(PixelAttention(32, 2))
    x = torch.randn(2, 32, 3, 4)
    w = dict(layer.named_parameters())
    h = F.group_norm(x, 2, w["norm.weight"], w["norm.bias"]).flatten(2).transpose(1, 2)  # B×pixels×C
    query, key, value = (h @ w["qkv.weight"].T + w["qkv.bias"]).chunk(3, dim=-1)
    heads = []
    for part in (slice(16), slice(16, None)):
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / 4, dim=-1)
        heads.append(weights @ value[..., part])
    out = torch.cat(heads, dim=-1) @ w["out.weight"].T + w["out.bias"]
    assert torch.allclose(layer(x), x + out.transpose(1, 2).reshape(x.shape), atol=1e-5)


def test_samples_do_not_mix():
    network, (x, t, condition) = random_unet(), inputs()
    together = network(x, t, condition)
    alone = network(x[1:2], t[1:2], condition.select(slice(1, 2)))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_time_label_and_null_matter():
    network, (x, t, condition) = random_unet(), inputs()
    base = network(x, t, condition)
    assert not torch.allclose(base, network(x, t + 0.1, condition), atol=1e-3)
    assert not torch.allclose(base, network(x, t, Condition(condition.labels + 1)), atol=1e-3)
    assert not torch.allclose(base, network(x, t, condition.null()), atol=1e-3)
    assert torch.equal(network(x, t, condition.null()), network(x, t, None))


@pytest.mark.parametrize("changes", [{}, {"attention": (), "middle_attention": False, "multipliers": (1, 1, 1)}])
def test_every_pixel_is_reached(changes):
    """By attention; and without it by the convolutions of the coarse levels."""
    network, (x, t, condition) = random_unet(**changes), inputs(1, 8, 8)
    x = x.requires_grad_()
    network(x, t[:1], condition.select(slice(0, 1)))[0, 0, 0, 0].backward()
    assert (x.grad.abs() > 0).all()


def test_memory_format_does_not_matter():
    network, (x, t, condition) = random_unet(), inputs()
    base = network(x, t, condition)
    last = torch.channels_last
    assert torch.allclose(network(x.to(memory_format=last), t, condition), base, atol=1e-5)
    assert torch.allclose(network.to(memory_format=last)(x, t, condition), base, atol=1e-5)
    assert base.is_contiguous(memory_format=last)


def test_bfloat16_autocast_is_near():
    network, (x, t, condition) = random_unet(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, t, condition)
        c = network.embedding(t, condition)
    assert c.dtype == torch.float32
    assert low.dtype == torch.bfloat16
    base = network(x, t, condition)
    assert (low - base).norm() / base.norm() < 0.05


def test_dropout_acts_in_training_alone():
    network, (x, t, condition) = random_unet(dropout=0.5), inputs()
    assert not torch.equal(network(x, t, condition), network(x, t, condition))
    network.eval()
    assert torch.equal(network(x, t, condition), network(x, t, condition))


@pytest.mark.parametrize("classes", [0, 5])
def test_one_time_for_the_batch_equals_a_time_for_each(classes):
    network, (x, _, condition) = random_unet(classes=classes), inputs()
    one = torch.tensor(0.3).expand(3)
    assert torch.allclose(network(x, one, condition), network(x, one.clone(), condition), atol=1e-5)
    assert torch.allclose(network(x, one), network(x, one.clone()), atol=1e-5)
