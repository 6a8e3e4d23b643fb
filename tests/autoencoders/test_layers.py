"""The fast layers are the plain ones: in value, in gradients of first and second order, and in bfloat16."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.autoencoders.layers import GrowingConv, NormSiLU, grown_kernel

LAST = torch.channels_last
SIDES = [(6, 5), (32, 33)]  # the norm is computed in two ways, by the number of pixels


def picture(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    draw = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1.5 * draw + 0.7).to(dtype).contiguous(memory_format=LAST)


def drawn(layer: nn.Module) -> nn.Module:
    for number, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(0.5 * picture(parameter.numel(), 1, 1, 1, seed=7 + number).reshape(parameter.shape))
    return layer


def norm(groups: int, channels: int) -> NormSiLU:
    layer = drawn(NormSiLU(groups, channels, 1e-6).double())
    assert isinstance(layer, NormSiLU)
    return layer


def plain_norm(layer: NormSiLU, x: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps))


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((y * picture(*y.shape, dtype=y.dtype, seed=3)).sum(), inputs))


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("side", SIDES)
def test_norm_is_the_plain_one_in_value_and_gradient(side, groups, memory_format):
    layer = norm(groups, 8)
    x = picture(3, 8, *side).contiguous(memory_format=memory_format).requires_grad_()
    inputs = [x, layer.weight, layer.bias]
    fast, plain = layer(x), plain_norm(layer, x)
    assert fast.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_gradient_of_the_norm_does_not_depend_on_how_many_pictures_it_takes_at_a_time(monkeypatch):
    layer, x = norm(4, 8), picture(5, 8, 6, 5).requires_grad_()
    whole = gradients(layer(x), [x, layer.weight, layer.bias])
    monkeypatch.setattr("rectiflow.autoencoders.layers._CHUNK", 2 * 8 * 6 * 5)
    for mine, theirs in zip(gradients(layer(x), [x, layer.weight, layer.bias]), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pixels", [1, 1024])
def test_norm_against_finite_differences_to_second_order(pixels, monkeypatch):
    monkeypatch.setattr("rectiflow.autoencoders.layers._PIXELS", pixels)
    layer, x = norm(2, 4), picture(2, 4, 2, 3).requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("side", SIDES)
def test_norm_under_function_transforms(side):
    layer, x = norm(4, 8), picture(6, 8, *side).unflatten(0, (3, 2))

    def energy(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    each = torch.stack([torch.func.grad(energy)(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(x), each)
    x.requires_grad_()
    (plain,) = torch.autograd.grad(plain_norm(layer, x.flatten(0, 1)).square().sum(), x)
    torch.testing.assert_close(each, plain)


def test_norm_without_gradients_is_the_same():
    layer, x = norm(4, 8), picture(3, 8, 6, 5)
    with torch.inference_mode():
        inferred = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), inferred)
    assert torch.equal(layer(x), inferred)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("autocast", [False, True])
def test_norm_in_bfloat16_keeps_bfloat16_and_is_as_near_to_the_truth_as_the_plain_one(side, autocast):
    layer = norm(8, 8)
    x = picture(3, 8, *side, dtype=torch.bfloat16).requires_grad_()
    exact = x.detach().double().requires_grad_()
    truth = plain_norm(layer, exact)
    single = copy.deepcopy(layer).float() if autocast else copy.deepcopy(layer).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fast = single(x)
    assert fast.dtype == torch.bfloat16
    # one rounding of the result, and where the parameters are in bfloat16 too, theirs
    torch.testing.assert_close(fast.double(), truth, rtol=2**-7, atol=2**-7)
    parameters = [layer.weight, layer.bias]
    for mine, theirs in zip(
        gradients(fast, [x, single.weight, single.bias]), gradients(truth, [exact, *parameters]), strict=True
    ):
        assert (mine.double() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format])
def test_growing_is_the_convolution_of_a_doubled_picture(memory_format):
    layer = drawn(GrowingConv(4).double())
    x = picture(2, 4, 5, 3).contiguous(memory_format=memory_format).requires_grad_()
    inputs = [x, *layer.parameters()]
    fast = layer(x)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_growing_in_bfloat16_is_within_its_precision():
    """How sums are rounded on the way is the processor's: without arithmetic of bfloat16 about twice as much."""
    layer = drawn(GrowingConv(16).double())
    x = picture(2, 16, 8, 8, dtype=torch.bfloat16)
    truth = layer(x.double())
    single = copy.deepcopy(layer).float()
    with torch.autocast("cpu", torch.bfloat16):
        fast = single(x)
    assert fast.dtype == torch.bfloat16
    assert (fast.double() - truth).norm() < torch.finfo(torch.bfloat16).eps / 2 * truth.norm()  # the unit of rounding


def test_grown_kernel_of_a_point_is_a_box():
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 2] = 1.0
    expected = torch.zeros(4, 4)
    expected[2:4, 0:2] = 1.0  # kernels of transposed convolutions run the other way
    assert torch.equal(grown_kernel(weight)[0, 0], expected)
