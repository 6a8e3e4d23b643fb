"""Sets that need no download."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

# The digits lie in the order of their 14 writers; from here on those of the last three.
_FIRST_HELD_OUT = 1415


@dataclass(frozen=True)
class Images:
    """Labelled pictures in memory.

    Args:
        pixels: float32 N×C×H×W in [−1, 1].
        labels: int64 N.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class ImageSet:
    """A set in two parts that share no writer, scene or source.

    Args:
        train: what training may see.
        held_out: what it may not.
        class_names: name of each label.
        levels: number of grey levels L; a level i is stored as 2i/(L−1) − 1.
    """

    train: Images
    held_out: Images
    class_names: tuple[str, ...]
    levels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """C, H, W of one picture."""
        return tuple(self.train.pixels.shape[1:])


def digits() -> ImageSet:
    """scikit-learn's 1,797 real handwritten digits, 8×8, 17 grey levels; 1,415 of eleven writers to train on, 382 of
    three others held out.
    """
    raw = load_digits()
    levels = 17
    pixels = torch.from_numpy(raw.images).float()[:, None] * 2 / (levels - 1) - 1
    labels = torch.from_numpy(raw.target).long()
    parts = [Images(pixels[part], labels[part]) for part in (slice(_FIRST_HELD_OUT), slice(_FIRST_HELD_OUT, None))]
    return ImageSet(parts[0], parts[1], tuple(str(name) for name in raw.target_names), levels)


BUILTIN = {"digits": digits}
