"""What a sample is conditioned on, as typed tensors with a null."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

NULL_LABEL = -1


@dataclass(frozen=True)
class Text:
    """Captions of B samples as one encoder gives them.

    Args:
        values: int64 B×L ids of tokens, or float B×L×D states of a frozen encoder.
        mask: bool B×L, true where there is a token; a row without any is the null caption.
        pooled: B×P, one vector for the whole caption, if the encoder gives one.
    """

    values: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def drop(self, where: Tensor) -> Self:
        """The null caption where `where` (bool B) holds."""
        return replace(self, mask=self.mask & ~where[:, None])

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """`function` of each tensor."""
        pooled = None if self.pooled is None else function(self.pooled)
        return type(self)(function(self.values), function(self.mask), pooled)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Several batches as one, padded to the longest."""
        length = max(part.mask.shape[1] for part in parts)
        padded = [part._padded(length - part.mask.shape[1]) for part in parts]
        pooled = [part.pooled for part in padded if part.pooled is not None]
        return cls(
            torch.cat([part.values for part in padded]),
            torch.cat([part.mask for part in padded]),
            torch.cat(pooled) if pooled else None,
        )

    def _padded(self, more: int) -> Self:
        behind = (0, more) if self.values.dim() == 2 else (0, 0, 0, more)
        return replace(self, values=F.pad(self.values, behind), mask=F.pad(self.mask, (0, more)))


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch of B samples.

    Args:
        labels: int64 B, class indices from 0; −1 is the null condition ∅.
        texts: captions, by each of the encoders.
        image: B×(C+1)×H×W, a picture beside the noisy one, or B×(C+1)×T×H×W; its last channel is 1 where it says
            something, and all of it is 0 where it says nothing. None for a model that takes no picture.
        against: what guidance leads away from in place of ∅: the conditions of negative prompts.
    """

    labels: Tensor
    texts: tuple[Text, ...] = ()
    image: Tensor | None = None
    against: "Condition | None" = None

    def __len__(self) -> int:
        return len(self.labels)

    def null(self) -> "Condition":
        """What guidance leads away from: `against`, or the null condition ∅ for each sample."""
        # Not by `or`: conditions of no samples are false.
        if self.against is not None:
            return self.against
        return self.drop(torch.ones_like(self.labels, dtype=torch.bool))

    def drop(self, mask: Tensor) -> Self:
        """Replace by ∅ where `mask` (bool B) holds: condition dropout."""
        kept = self if self.image is None else self.drop_image(mask)
        texts = tuple(text.drop(mask) for text in self.texts)
        return replace(kept, labels=torch.where(mask, NULL_LABEL, self.labels), texts=texts, against=None)

    def drop_text(self, number: int, mask: Tensor) -> Self:
        """Replace the captions of one encoder by the null caption where `mask` (bool B) holds."""
        texts = tuple(text.drop(mask) if i == number else text for i, text in enumerate(self.texts))
        return replace(self, texts=texts)

    def drop_image(self, mask: Tensor) -> Self:
        """Replace the picture by nothing where `mask` (bool B) holds."""
        assert self.image is not None
        rows = mask.reshape(-1, *[1] * (self.image.dim() - 1))
        return replace(self, image=torch.where(rows, 0.0, self.image))

    def select(self, index: Tensor | slice) -> Self:
        """The samples at `index` (int64 or bool tensor, or a slice)."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(
            function(self.labels),
            tuple(text.map(function) for text in self.texts),
            None if self.image is None else function(self.image),
            None if self.against is None else self.against._map(function),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Several batches as one; captions are padded to the longest."""
        images = [part.image for part in parts if part.image is not None]
        against = [part.null() for part in parts] if any(part.against is not None for part in parts) else []
        return cls(
            torch.cat([part.labels for part in parts]),
            tuple(Text.concatenate(texts) for texts in zip(*(part.texts for part in parts), strict=True)),
            torch.cat(images) if images else None,
            Condition.concatenate(against) if against else None,
        )
