"""Captions inside a network: tokens to attend to, and one vector for all of a caption."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rectiflow.base.condition import Condition, Text
from rectiflow.base.errors import InputError
from rectiflow.networks.config import StatesInput, TextInput, TokensInput
from rectiflow.networks.layers import Attention, SwiGLU, attend, line_rotation, normalise

_HEAD = 32


class Words(NamedTuple):
    """What a network sees of captions.

    Args:
        tokens: B×L×D; the first is the same learned one everywhere, so that a null caption has something to attend to.
        mask: bool B×L, true where there is a token.
        pooled: B×D, one vector for all of a caption.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextBlock(nn.Module):
    """Self-attention over the tokens of a caption and a feed-forward map, both ways at once.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, width // _HEAD)
        self.feed_forward = SwiGLU(width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """B×L×D and a mask with one token at least in each row, to B×L×D."""
        x = x + self.attention(normalise(x), rotation, mask)
        return x + self.feed_forward(normalise(x))


class TokenReader(nn.Module):
    """A small transformer over ids of tokens.

    Args:
        config: its settings.
        width: features of what it gives.
    """

    def __init__(self, config: TokensInput, width: int) -> None:
        super().__init__()
        inner = config.width or width
        if inner % _HEAD:
            raise InputError(
                f"captions are read with {_HEAD} features a head, which do not divide the width {inner}; set "
                f"text.encoders to one with a width that is a multiple of {_HEAD}."
            )
        self.rows = nn.Embedding(config.vocabulary, inner)
        nn.init.normal_(self.rows.weight)
        self.blocks = nn.ModuleList(TextBlock(inner) for _ in range(config.depth))
        self.out = nn.Linear(inner, width)

    def forward(self, text: Text) -> Tensor:
        """Ids B×L to B×L×D."""
        mask = text.mask.clone()
        mask[:, 0] = True  # a null caption attends to something; nobody attends to what comes of it
        x = self.rows(text.values)
        rotation = line_rotation(x.shape[1], _HEAD, x.device)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return self.out(normalise(x))


class StateReader(nn.Module):
    """A linear map of a frozen encoder's states.

    Args:
        config: what the encoder gives.
        width: features of what it gives.
    """

    def __init__(self, config: StatesInput, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(config.features, width)

    def forward(self, text: Text) -> Tensor:
        """States B×L×features to B×L×D."""
        return self.out(normalise(text.values.float()))


class TextEmbedding(nn.Module):
    """Captions, by one encoder or several, as tokens behind one another and one vector.

    Args:
        inputs: what each encoder gives; at least one.
        width: D.
    """

    def __init__(self, inputs: Sequence[TextInput], width: int) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.readers = nn.ModuleList(
            TokenReader(each, width) if isinstance(each, TokensInput) else StateReader(each, width) for each in inputs
        )
        self.register = nn.Parameter(torch.randn(1, 1, width))
        self.pool = nn.ModuleList(nn.Linear(self._pooled(each) or width, width) for each in inputs)
        self.null = nn.Parameter(torch.zeros(len(self.inputs), width))

    @staticmethod
    def _pooled(each: TextInput) -> int:
        return each.pooled if isinstance(each, StatesInput) else 0

    def forward(self, condition: Condition | None, count: int) -> Words:
        """What to see of B = `count` captions; without a condition, of null captions.

        Raises:
            InputError: the condition comes from other encoders.
        """
        if condition is None:
            return self._null(count)
        if len(condition.texts) != len(self.inputs):
            raise InputError(f"this network reads {len(self.inputs)} encoders, received {len(condition.texts)}.")
        register = self.register.expand(count, -1, -1)
        tokens, masks = [register], [register.new_ones(count, 1, dtype=torch.bool)]
        pooled = torch.zeros(())
        for number, (text, reader, pool) in enumerate(zip(condition.texts, self.readers, self.pool, strict=True)):
            states = reader(text)
            there = text.mask[..., None]
            mean = (states * there).sum(1) / there.sum(1).clamp_min(1)
            vector = pool(mean if text.pooled is None else text.pooled.to(mean.dtype))
            pooled = pooled + torch.where(text.mask.any(1, keepdim=True), vector, self.null[number].to(vector.dtype))
            tokens.append(states)
            masks.append(text.mask)
        return Words(torch.cat([part.to(states.dtype) for part in tokens], 1), torch.cat(masks, 1), pooled)

    def _null(self, count: int) -> Words:
        mask = torch.ones(count, 1, dtype=torch.bool, device=self.register.device)
        return Words(self.register.expand(count, -1, -1), mask, self.null.sum(0).expand(count, -1))


class TextAttention(nn.Module):
    """x + attention of the normalised x to the tokens of a caption, whose output starts at zero.

    Args:
        width: features of x.
        features: of a token of the caption.
        heads: number of heads.
    """

    def __init__(self, width: int, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(features, 2 * width, bias=False)
        self.scale = nn.Parameter(torch.ones(2, 1, 1, width // heads))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """B×tokens×width to the same."""
        key, value = self.key_value(normalise(words.tokens)).chunk(2, dim=-1)
        query, key, value = (
            part.reshape(len(x), -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in (self.query(normalise(x)), key, value)
        )
        scale = self.scale.to(query.dtype)
        attended = attend(normalise(query) * scale[0], normalise(key) * scale[1], value, words.mask)
        return x + self.out(attended.transpose(1, 2).flatten(2))
