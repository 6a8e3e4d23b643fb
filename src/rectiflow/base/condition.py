"""What a sample is conditioned on, as typed tensors with a null."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

NULL_LABEL = -1


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch of B samples.

    Args:
        labels: int64 B, class indices from 0; −1 is the null condition ∅.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def null(self) -> Self:
        """The null condition ∅ for each sample."""
        return type(self)(torch.full_like(self.labels, NULL_LABEL))

    def drop(self, mask: Tensor) -> Self:
        """Replace by ∅ where `mask` (bool B) holds: condition dropout."""
        return type(self)(torch.where(mask, NULL_LABEL, self.labels))

    def select(self, index: Tensor | slice) -> Self:
        """The samples at `index` (int64 or bool tensor, or a slice)."""
        return type(self)(self.labels[index])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(self.labels.to(device))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Several batches as one."""
        return cls(torch.cat([part.labels for part in parts]))
