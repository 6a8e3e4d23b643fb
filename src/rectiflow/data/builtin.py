"""Sets that need no download."""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits

from rectiflow.data.images import ImageSet, InMemory
from rectiflow.data.moving import FRAMES, MovingDigits
from rectiflow.data.scenes import Scenes

# The digits lie in the order of their 14 writers; from here on those of the last three.
_FIRST_HELD_OUT = 1415


def digits() -> ImageSet:
    """scikit-learn's 1,797 real handwritten digits, 8×8, 17 grey levels; 1,415 of eleven writers to train on, 382 of
    three others held out.
    """
    raw = load_digits()
    levels = 17
    pixels = torch.from_numpy(raw.images).float()[:, None] * 2 / (levels - 1) - 1
    labels = torch.from_numpy(raw.target).long()
    parts = [InMemory(pixels[part], labels[part]) for part in (slice(_FIRST_HELD_OUT), slice(_FIRST_HELD_OUT, None))]
    return ImageSet(parts[0], parts[1], tuple(str(name) for name in raw.target_names), levels)


def digit_scenes() -> ImageSet:
    """One to three coloured digits in named places on 32×32 black pixels, with captions: 20,000 scenes to train on,
    2,000 of other writers held out, half of which hold a digit in a colour that it never has in training.
    """
    source = digits()
    parts = [
        Scenes(part, name, count)
        for part, name, count in ((source.train, "train", 20_000), (source.held_out, "held out", 2_000))
    ]
    return ImageSet(parts[0], parts[1], ())


def digit_clips(frames: int = FRAMES) -> ImageSet:
    """A coloured digit moving over 32×32 black pixels, with captions: 20,000 clips to train on, 2,000 of other writers
    held out, half of which show a digit in a colour that it never has in training.

    Args:
        frames: T, 5, 9, 13 or 17.

    Raises:
        InputError: another number of frames.
    """
    source = digits()
    parts = [
        MovingDigits(part, name, count, frames)
        for part, name, count in ((source.train, "train", 20_000), (source.held_out, "held out", 2_000))
    ]
    return ImageSet(parts[0], parts[1], ())


BUILTIN: dict[str, Callable[[], ImageSet]] = {
    "digits": digits,
    "digit-scenes": digit_scenes,
    "digit-clips": digit_clips,
}
