"""Layers that compute what torch's own do, in less time: a norm followed by silu, and a grown picture's convolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements that the backward pass takes at a time, whole pictures at least: its temporaries then stay in the cache, and
# the allocator keeps them. With one thread f8 trained 22.7 pictures of 64×64 a second so, 20.4 with whole batches.
_CHUNK = 2**19
# Pixels from which torch's forward pass is as fast as one written in tensor operations; below, 16×128×16×16 in bfloat16
# with 32 groups takes it 2.1 ms, and the latter 0.4.
_PIXELS = 1024


class NormSiLU(nn.GroupNorm):
    """silu(norm(x)) of the group norm that it is (Wu & He 2018)."""

    def forward(self, input: Tensor) -> Tensor:
        """B×C×H×W to the same, in the input's precision and memory format."""
        _, channels, height, width = input.shape
        last = (height * width * channels, 1, width * channels, channels)
        if input.device.type != "cpu" or input.stride() != last or torch.compiler.is_compiling():
            return F.silu(super().forward(input))
        # On a CPU torch's backward pass of group norm with the channels last takes 42 ms for 16×32×64×64 in bfloat16
        # with 32 groups (torch 2.13, two threads), against 3.0 ms of this one with silu's in it.
        y: Tensor = _NormSiLU.apply(input, self.weight, self.bias, self.num_groups, self.eps)[0]  # type: ignore[no-untyped-call]
        return y


class GrowingConv(nn.Conv2d):
    """The 3×3 convolution of a picture of twice the height and width, in which each pixel stands four times.

    Args:
        channels: C, of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """B×C×H×W to B×C×2H×2W."""
        # A 3×3 kernel meets only 2×2 different pixels: 16 products for the four pixels of the output, not 36. The bias
        # comes after, since with it torch takes 13.7 ms for the kernel's gradient of 16×64×32×32 in bfloat16, else 6.4.
        grown = F.conv_transpose2d(input, grown_kernel(self.weight), stride=2, padding=1)
        assert self.bias is not None
        return grown + self.bias.to(grown.dtype)[:, None, None]


def grown_kernel(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution of stride 2 that is `weight`'s convolution of a doubled picture.

    Doubling is a transposed convolution with the box [1, 1], so the kernel is [w₂, w₂+w₁, w₁+w₀, w₀] in each direction.

    Args:
        weight: C′×C×3×3.

    Returns:
        C×C′×4×4.
    """
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    both = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
    return both.flip(2, 3).transpose(0, 1)


class _NormSiLU(torch.autograd.Function):
    """silu(a·x + b) of x: B×C×H×W, with a = γ/σ and b = β − m·a of each group; also gives m and 1/σ, each B×G×1.

    It computes in float32 at least and keeps only x. Forward-mode derivatives are not defined, others of any order are.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, height, width = input.shape
        precision = torch.promote_types(input.dtype, torch.float32)
        weight, bias = weight.to(precision), bias.to(precision)
        if height * width >= _PIXELS:
            y, mean, rate = torch.native_group_norm(
                input, weight, bias, batch, channels, height * width, groups, epsilon
            )
            return F.silu(y, inplace=True), mean.to(precision)[..., None], rate.to(precision)[..., None]
        x = _pixels(input.to(precision))
        mean, rate = _moments(x, groups, epsilon)
        a, b = _affine(mean, rate, weight, bias)
        return _picture(F.silu(torch.addcmul(b, x, a), inplace=True).to(input.dtype), input), mean, rate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, ctx.groups, ctx.epsilon = inputs
        _, mean, rate = output
        ctx.mark_non_differentiable(mean, rate)
        ctx.save_for_backward(input, weight, bias, mean, rate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, rate = ctx.saved_tensors
        x = _pixels(input)
        if torch.is_grad_enabled():  # a derivative of this one needs the moments as functions of x
            mean, rate = _moments(x.to(rate.dtype), ctx.groups, ctx.epsilon)
        few = max(1, _CHUNK // x[0].numel())
        chunks = [part.split(few) for part in (_pixels(grads[0]), x, mean, rate)]
        parts = [_pulled_back(g, p, m, r, weight, bias) for g, p, m, r in zip(*chunks, strict=True)]
        dx, products, sums = (torch.cat(part) for part in zip(*parts, strict=True))
        return _picture(dx, input), products.sum(0).to(weight.dtype), sums.sum(0).to(bias.dtype), None, None


def _pulled_back(
    grad: Tensor, x: Tensor, mean: Tensor, rate: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, B×HW×C, and each picture's part of dL/dγ and of dL/dβ, both B×C."""
    groups, precise = mean.shape[1], x.to(rate.dtype)
    a, b = _affine(mean, rate, weight, bias)
    # δ = dL/d(ax+b). Sums over the pixels of δ and of δx̂, x̂ = (x − m)/σ, are the gradients of β and γ; with their
    # weighted means over a group, dL/dx = δa − (⟨γδ⟩ + x̂⟨γδx̂⟩)/σ.
    delta = _silu_pulled_back(grad.to(rate.dtype), torch.addcmul(b, precise, a))
    sums = _grouped(delta.sum(1), groups)
    products = (_grouped((delta * precise).sum(1), groups) - mean * sums) * rate
    share = rate * groups / x[0].numel()
    gamma = _grouped(weight.to(rate.dtype)[None], groups)
    slope = -(gamma * products).sum(2, keepdim=True) * share * rate
    shift = -(gamma * sums).sum(2, keepdim=True) * share - slope * mean
    slope, shift = (value.expand_as(sums).flatten(1)[:, None] for value in (slope, shift))
    dx = torch.addcmul(torch.addcmul(shift, precise, slope), delta, a)
    return dx.to(x.dtype), products.flatten(1), sums.flatten(1)


def _silu_pulled_back(grad: Tensor, z: Tensor) -> Tensor:
    """grad · silu′(z), elementwise."""
    if torch.is_grad_enabled():  # torch's fused one has no derivative
        share = torch.sigmoid(z)
        return grad * share * (1 + z * (1 - share))
    out: Tensor = torch.ops.aten.silu_backward(grad, z)
    return out


def _pixels(picture: Tensor) -> Tensor:
    """B×C×H×W to B×HW×C, a view if the channels are last in memory."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def _picture(pixels: Tensor, like: Tensor) -> Tensor:
    """B×HW×C to B×C×H×W, of the height and width of `like`."""
    return pixels.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _moments(x: Tensor, groups: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """m and 1/σ of each group of x: B×HW×C; each B×G×1."""
    count = x[0].numel() // groups
    mean = _grouped(x.sum(1), groups).sum(2, keepdim=True) / count
    square = _grouped((x * x).sum(1), groups).sum(2, keepdim=True) / count
    return mean, ((square - mean * mean).clamp_min(0) + epsilon).rsqrt()


def _affine(mean: Tensor, rate: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, each B×1×C, with which the norm is a·x + b."""
    groups = mean.shape[1]
    a = rate * _grouped(weight[None], groups)  # B×G×(C/G)
    b = _grouped(bias[None], groups) - mean * a
    return a.flatten(1)[:, None], b.flatten(1)[:, None]


def _grouped(values: Tensor, groups: int) -> Tensor:
    """B×C to B×G×(C/G)."""
    return values.unflatten(1, (groups, -1))
