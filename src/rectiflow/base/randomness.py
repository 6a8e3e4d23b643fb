"""Stateless randomness: a draw is a function of (seed, purpose, step, index), so that no batching can change it.

The generator is Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011),
written on whole tensors: the key holds (seed, purpose), the counter (block, index, step). Integers and uniforms are the
same bits on every device; normals are computed in float64 and rounded.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four 32-bit words (as int64 tensors) for each 128-bit counter under a 64-bit key.

    Args:
        counter: four int64 tensors of one shape, each in [0, 2³²).
        key: two integers in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps around in int64; its 64 bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _LOW) ^ c1 ^ k0,
            product1 & _LOW,
            ((product0 >> 32) & _LOW) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


@dataclass(frozen=True)
class Key:
    """Names a family of draws; each member has a global index.

    Args:
        seed: any integer.
        purpose: what the draw is for ("noise", "time", …): different purposes are independent.
        step: training step, epoch or solver step, in [0, 2³²).
    """

    seed: int
    purpose: str
    step: int = 0

    def words(self, index: Tensor, count: int) -> Tensor:
        """Uniform 32-bit words, B×count int64, for the B global indices in `index` (int64, ≥ 0)."""
        digest = hashlib.blake2b(f"{self.seed}\0{self.purpose}".encode(), digest_size=8).digest()
        key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
        block = torch.arange(-(-count // 4), device=index.device)
        shape = (len(index), len(block))
        rows = index.reshape(-1, 1)
        counter = [block.expand(shape), (rows & _LOW).expand(shape), (rows >> 32).expand(shape)]
        counter.append(torch.full(shape, self.step, dtype=torch.int64, device=index.device))
        return torch.stack(philox(counter, key), dim=-1).reshape(len(index), -1)[:, :count]

    def uniform(self, index: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """Uniform draws in (0, 1), float64, B×shape."""
        words = self.words(index, math.prod(shape))
        return ((words.double() + 0.5) / 2**32).reshape(len(index), *shape)

    def normal(self, index: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal draws, float32, B×shape, by the Box-Muller transform."""
        count = math.prod(shape)
        pairs = -(-count // 2)
        uniform = ((self.words(index, 2 * pairs).double() + 0.5) / 2**32).reshape(len(index), 2, pairs)
        # Contiguous halves: a strided one takes another code path, which may differ in the last bit.
        radius = (-2 * uniform[:, 0].contiguous().log()).sqrt()
        angle = 2 * math.pi * uniform[:, 1].contiguous()
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return both[:, :count].float().reshape(len(index), *shape)

    def permutation(self, count: int) -> Tensor:
        """A uniform random order of 0 … count−1 (int64)."""
        words = self.words(torch.arange(count), 2)
        return torch.argsort((words[:, 0] >> 1) << 32 | words[:, 1], stable=True)
