"""Layers: attention with QK-norm and rotary positions, SwiGLU, embeddings of times and conditions."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.base.condition import NULL_LABEL, Condition


def sinusoidal(position: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Cosines and sines of `position` (any shape) at width/2 wavelengths from 2π to 2π·longest; …×width, float32."""
    half = width // 2
    frequency = torch.exp(-math.log(longest) / half * torch.arange(half, device=position.device))
    angle = position[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Grid(NamedTuple):
    """How many patches there are in time, downwards and across; a picture is one frame."""

    frames: int
    height: int
    width: int


@lru_cache(maxsize=64)
def grid_embedding(grid: Grid, features: int, device: torch.device) -> Tensor:
    """Fixed position embedding, (T·h·w)×features: half for the row, half for the column.

    What the sinusoids of the time have gained since time 0 is added, so that the first frame is embedded as a picture.
    """
    times, rows, columns = _places(grid, device)
    place = torch.cat([sinusoidal(rows, features // 2), sinusoidal(columns, features // 2)], dim=-1)
    if grid.frames == 1:
        return place
    return place + (sinusoidal(times, features) - sinusoidal(times[:1], features))


@lru_cache(maxsize=64)
def line_rotation(length: int, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables of `rotate` for tokens in a line, each length×features."""
    return _tables([_angles(torch.arange(length, device=device), features // 2)])


@lru_cache(maxsize=64)
def axial_rotation(grid: Grid, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables of `rotate`, each (T·h·w)×features (axial RoPE; Su et al. 2021); time does not matter.

    Of the pairs (i, i+features/2) the first half turn with the row, the rest with the column.
    """
    _, rows, columns = _places(grid, device)
    return _tables([_angles(rows, features // 4), _angles(columns, features // 4)])


@lru_cache(maxsize=64)
def space_time_rotation(grid: Grid, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables of `rotate`, each (T·h·w)×features.

    Of the P pairs (i, i+features/2) the first P − 2⌊P/3⌋ turn with the time, ⌊P/3⌋ with the row and ⌊P/3⌋ with the
    column (as Wan 2.1 splits a head).
    """
    times, rows, columns = _places(grid, device)
    pairs, third = features // 2, features // 6
    return _tables([_angles(times, pairs - 2 * third), _angles(rows, third), _angles(columns, third)])


def _angles(position: Tensor, pairs: int) -> Tensor:
    return position[:, None] * 10_000.0 ** (-torch.arange(pairs, device=position.device) / pairs)


def _tables(angles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    angle = torch.cat(list(angles), dim=-1)
    return torch.cat([angle.cos(), angle.cos()], dim=-1), torch.cat([-angle.sin(), angle.sin()], dim=-1)


def _places(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Time, row and column of each token, which come frame by frame and row by row."""
    index = torch.arange(grid.frames * grid.height * grid.width, device=device)
    return index // (grid.height * grid.width), index // grid.width % grid.height, index % grid.width


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+d/2}) by their angles.

    Args:
        x: …×tokens×d.
        cos: tokens×d or …×tokens×d, the cosines twice.
        sin: the same shape, −sin and then sin.
    """
    # Torch's compiler makes vectors of halves, and of a roll none: 2.4 ms and 0.75, forward and backward in bfloat16
    # on 32×64×16×32 with two threads of torch 2.13.
    (a, b), (cos_a, cos_b), (sin_a, sin_b) = (each.to(x.dtype).chunk(2, dim=-1) for each in (x, cos, sin))
    return torch.cat([torch.addcmul(a * cos_a, b, sin_a), torch.addcmul(b * cos_b, a, sin_b)], dim=-1)


def normalise(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension (RMSNorm without weights; Zhang & Sennrich 2019)."""
    # In eager mode on a CPU torch's rms_norm takes five passes and this two and a half: 38 ms against 19, forward and
    # backward on 32×256×384 with one thread of torch 2.13, and 3.7 against 2.4 without gradients.
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).clamp_min(1e-3)
    return x * (x.shape[-1] ** 0.5 / norm).to(x.dtype)


_FEW_TOKENS, _FEW_PAIRS = 512, 2**26  # beyond, what is kept of them for the backward pass is too much memory


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d)V, each …×tokens×d, by torch's fused attention or, where that is slower, as it is written.

    Args:
        query: …×tokens×d.
        key: …×others×d.
        value: of the shape of `key`.
        mask: bool B×others, true where a key may be attended to, one at least in a row; None is everywhere.
    """
    allowed = None if mask is None else mask[:, None, None]
    few = max(query.shape[-2], key.shape[-2]) <= _FEW_TOKENS
    few = few and math.prod(query.shape[:-1]) * key.shape[-2] <= _FEW_PAIRS
    if few and query.device.type == "cpu" and value.dtype == torch.bfloat16 and torch.is_grad_enabled():
        return _attend_as_written(query.to(value.dtype), key.to(value.dtype), value, allowed)
    return F.scaled_dot_product_attention(query, key, value, allowed)


def _attend_as_written(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    # The backward pass of torch's kernel in bfloat16 on a CPU: 16.6 ms forward and backward of 32×8×64×32 with two
    # threads of torch 2.13 without AMX, 2.0 like this; 37 and 13 of 16×6×256×64, 63 and 43 of 8×6×512×64. Autocast made
    # the softmax one of float32, which costs more than the rest; it is computed so in any case, of scores that are
    # rounded to bfloat16, which torch's kernel keeps in float32: without gradients, so for samples, that one is used.
    with torch.autocast("cpu", enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return scores.softmax(dim=-1) @ value


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are normalised per head and turned by their positions.

    Args:
        width: D.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.ones(2, 1, 1, width // heads))  # of queries and of keys
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """B×tokens×D to the same; `mask` as for `attend`."""
        return self.merge(attend(*self.project(x, rotation), mask))

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each B×heads×tokens×d, of x B×tokens×D; without `rotation` nothing is turned."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        both, value = qkv.split([2, 1], dim=2)  # B×tokens×2 and B×tokens×1 of heads×d
        both, scale = normalise(both), self.scale[:, 0]  # 2×1×d
        if rotation is None:
            both = both * scale.to(both.dtype)
        else:
            # The learned scale goes into the tables of the rotation, which are smaller than what is turned.
            cos, sin = (table[:, None, None] for table in rotation)
            turned = torch.cat(scale.chunk(2, dim=-1)[::-1], dim=-1)
            both = rotate(both, scale * cos, turned * sin)
        query, key = both.transpose(1, 3).unbind(2)
        return query, key, value.transpose(1, 3)[:, :, 0]

    def merge(self, attended: Tensor) -> Tensor:
        """B×heads×tokens×d to B×tokens×D."""
        return self.out(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward map W₃(silu(W₁x)·W₂x) (Shazeer 2020); ⅔·4D hidden features, rounded up to a multiple of 64.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-(8 * width // 3) // 64) * 64
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """…×D to the same."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class TimeEmbedding(nn.Module):
    """Features of t in [0, 1]: sinusoids of 1000·t, then two linear maps.

    Args:
        width: D.
    """

    FREQUENCIES = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """B to B×D."""
        return self.map(sinusoidal(1000 * t, self.FREQUENCIES))


class LabelEmbedding(nn.Module):
    """One learned row for each class and one for the null label −1.

    Args:
        classes: number of classes.
        width: D.
        std: standard deviation of the rows at first.
    """

    def __init__(self, classes: int, width: int, std: float) -> None:
        super().__init__()
        self.rows = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.rows.weight, std=std)

    def forward(self, labels: Tensor) -> Tensor:
        """int64 B to B×D."""
        return self.rows(torch.where(labels < 0, self.rows.num_embeddings - 1, labels))


class ConditionEmbedding(nn.Module):
    """Features of what a network is told beside x_t: the time, and the label if there are classes.

    Args:
        classes: number of classes; 0 is none.
        width: D.
        label_std: standard deviation of the labels' features at first.
    """

    def __init__(self, classes: int, width: int, label_std: float) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.label = LabelEmbedding(classes, width, label_std) if classes else None

    def forward(self, t: Tensor, condition: Condition | None) -> Tensor:
        """t B (float32) to B×D, or to 1×D if one row serves the whole batch."""
        if t.stride() == (0,):
            t = t[:1]  # one time for the whole batch, as in sampling: its features are computed once
        # The time's features keep full precision: bf16 cannot tell neighbouring steps apart.
        with torch.autocast(t.device.type, enabled=False):
            c: Tensor = self.time(t)
            if self.label is None:
                return c
            labels = torch.full((1,), NULL_LABEL, device=t.device) if condition is None else condition.labels
            return c + self.label(labels)
