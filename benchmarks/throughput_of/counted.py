"""The matrix products of a step: how many FLOPs they are, and how fast this machine does them by themselves.

A multiplication and its addition are two FLOPs. Attention counts as the products it is made of, two forward and four
backward, however it is computed; what is computed again in the backward pass is no work done.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SECOND_AND_THIRD = {"addmm": 1, "baddbmm": 1, "mm": 0, "bmm": 0}  # where the operands of a product begin


class Layout(NamedTuple):
    """How a matrix, or a batch of them, lies in memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def made(self, device: torch.device) -> Tensor:
        """Random numbers that lie so."""
        room = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return torch.randn(room, device=device).to(self.dtype).as_strided(self.size, self.stride)

    @property
    def turned(self) -> "Layout":
        """Rows for columns."""
        order = [*range(len(self.size) - 2), len(self.size) - 1, len(self.size) - 2]
        return Layout(tuple(self.size[i] for i in order), tuple(self.stride[i] for i in order), self.dtype)


class Product(NamedTuple):
    """One product of two matrices, or of a batch of pairs.

    Args:
        kind: "linear", "attention" or "convolution"; the last is counted, and not done by itself.
        left: its first operand; of a convolution any.
        right: its second.
        flops: how many.
    """

    kind: str
    left: Layout
    right: Layout
    flops: int


def product(kind: str, left: Layout, right: Layout) -> Product:
    """Of two layouts …×m×k and …×k×n."""
    return Product(kind, left, right, 2 * math.prod(left.size) * right.size[-1])


class Seen(TorchDispatchMode):
    """Notes each product that is done within it, forward and backward; what is compiled cannot be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.counts.update(_products(func.overloadpacket.__name__, args, out))
        return out

    @property
    def flops(self) -> int:
        return sum(found.flops * count for found, count in self.counts.items())


def _products(name: str, args: Sequence[Any], out: Any) -> Iterator[Product]:
    if name in _SECOND_AND_THIRD:
        first = _SECOND_AND_THIRD[name]
        left, right = (Layout.of(args[first + i]) for i in (0, 1))
        yield product("attention" if name.endswith("bmm") else "linear", left, right)
    elif name.startswith("_scaled_dot_product"):
        backward = "backward" in name
        yield from attention(*(Layout.of(each) for each in args[backward : 3 + backward]), backward)
    elif name in ("convolution", "_convolution", "mkldnn_convolution"):
        yield _convolution(args[0], args[1], math.prod(out.shape) * math.prod(args[1].shape[1:]))
    elif name == "convolution_backward":
        grad, x, weight, wanted = args[0], args[1], args[2], args[-1]
        for _ in range(sum(map(bool, wanted[:2]))):
            yield _convolution(x, weight, math.prod(grad.shape) * math.prod(weight.shape[1:]))


def _convolution(x: Tensor, weight: Tensor, products: int) -> Product:
    return Product("convolution", Layout.of(x), Layout.of(weight), 2 * products)


def attention(query: Layout, key: Layout, value: Layout, backward: bool) -> Iterator[Product]:
    """The products of softmax(QKᵀ)V, or those of its gradients by Q, K, V and the weights."""
    sides = (*query.size[:-1], key.size[-2])
    strides = tuple(math.prod(sides[i + 1 :]) for i in range(len(sides)))
    weights = Layout(sides, strides, query.dtype)
    made = Layout((*query.size[:-1], value.size[-1]), query.stride, query.dtype)
    pairs = [(query, key.turned), (weights, value)]
    if backward:
        pairs = [(made, value.turned), (weights.turned, made), (weights, key), (weights.turned, query)]
    for left, right in pairs:
        yield product("attention", left, right)


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Rates:
    """Times the products of a step one by one, at their own shapes, layouts and precisions.

    Args:
        counts: how often a step does each.
        device: where.
    """

    def __init__(self, counts: Mapping[Product, int], device: torch.device) -> None:
        self.counts = {found: count for found, count in counts.items() if found.kind != "convolution"}
        self.device = device
        self.times: dict[Product, list[float]] = {found: [] for found in self.counts}

    def turn(self, repeats: int = 1) -> None:
        """Do each of them so often, once more at first."""
        for found, times in self.times.items():
            left, right = found.left.made(self.device), found.right.made(self.device)
            torch.matmul(left, right)
            for _ in range(repeats):
                began = now(self.device)
                torch.matmul(left, right)
                times.append(now(self.device) - began)

    def seconds(self, kinds: Sequence[str] = ("linear", "attention")) -> float:
        """Of all products of a step of these kinds, by the median of each."""
        return sum(
            statistics.median(times) * self.counts[found] for found, times in self.times.items() if found.kind in kinds
        )

    def flops(self, kinds: Sequence[str] = ("linear", "attention")) -> int:
        """Of a step."""
        return sum(found.flops * count for found, count in self.counts.items() if found.kind in kinds)

    def rate(self, kinds: Sequence[str] = ("linear", "attention")) -> float:
        """FLOPs a second."""
        return self.flops(kinds) / self.seconds(kinds) if self.flops(kinds) else 0.0


def seen(call: Callable[[], Tensor]) -> Seen:
    """The products of a loss and of its gradients."""
    with Seen() as found:
        call().backward()
    return found
