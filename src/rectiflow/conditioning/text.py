"""Captions as conditions: the interface of what reads them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from rectiflow.base.condition import Text
from rectiflow.conditioning.config import TextRecord
from rectiflow.networks.config import TextInput

_MULTIPLE = 8  # lengths are padded to one less than a multiple of it, for the network adds one token


def padded_length(longest: int) -> int:
    """To how many tokens a batch is padded whose longest caption has so many."""
    return -(-(max(longest, 1) + 1) // _MULTIPLE) * _MULTIPLE - 1


class TextEncoder(ABC):
    """Turns captions into tensors. Subclasses are final.

    Attributes:
        gives: what a network is to expect of it.
    """

    gives: TextInput

    @abstractmethod
    def __call__(self, captions: Sequence[str]) -> Text:
        """Captions of B samples; an empty one is the null caption. What is too long is cut, and told once."""

    @abstractmethod
    def save(self, folder: Path, number: int) -> tuple[TextRecord, dict[str, str]]:
        """Write what a model folder needs of it.

        Args:
            folder: the model folder.
            number: its place among the model's encoders.

        Returns:
            What `config.json` says of it, and the SHA-256 of each file written.
        """
