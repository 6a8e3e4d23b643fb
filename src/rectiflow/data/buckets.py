"""Shapes of about one area, to which pictures of many proportions are cropped least.

A picture of proportions a = width/height, resized to cover a shape of proportions b, keeps min(a/b, b/a) of its area.
"""

import numpy as np

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig

Size = tuple[int, int]
_AREA = 0.1  # how far from the area of `data.size` a shape may be
_BINS = 500  # of proportions, to a factor of e


def candidates(config: DataConfig) -> list[Size]:
    """Every (height, width) of whole multiples with the area of `data.size` within 10 %, from tall to wide.

    Raises:
        InputError: `data.size` is no whole multiple itself.
    """
    height, width = config.height_width
    step, area = config.multiple, height * width
    if height % step or width % step:
        raise InputError(
            f"data.size is {config.size}, no multiple of data.multiple={step} as the sides of all buckets are; set "
            f"data.size={max(1, round(height / step)) * step}."
        )
    longest = int((area * config.max_aspect * (1 + _AREA)) ** 0.5) // step
    found = {(height, width)}
    for long in range(1, longest + 1):
        short = max(1, round(area / (long * step * step)))
        near = abs(short * long * step * step / area - 1) <= _AREA
        if near and max(long, short) <= config.max_aspect * min(long, short):
            found |= {(short * step, long * step), (long * step, short * step)}
    return sorted(found, key=lambda size: size[1] / size[0])


def kept(heights: np.ndarray, widths: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """Share of its area that each of N pictures keeps at each of K shapes, N×K."""
    ratio = np.log(widths / heights)[:, None] - np.log([width / height for height, width in sizes])
    return np.exp(-np.abs(ratio))


def choose(heights: np.ndarray, widths: np.ndarray, config: DataConfig) -> list[Size]:
    """At most `data.buckets` shapes at which the pictures keep most of their area, from tall to wide.

    Those with fewer than `data.smallest_bucket` pictures are given up, the smallest first.

    Args:
        heights: of the pictures to train on, N ≥ 1.
        widths: of the same.
        config: how many shapes, of which area and multiples.

    Raises:
        InputError: see `candidates`.
    """
    sizes = candidates(config)
    bins, counts = np.unique(np.round(np.log(widths / heights) * _BINS), return_counts=True)
    shares = kept(np.ones(len(bins)), np.exp(bins / _BINS), sizes)
    centres = np.log([width / height for height, width in sizes])
    chosen = _best(shares * counts[:, None], bins[:, None] / _BINS <= centres, config.buckets)
    while len(chosen) > 1:
        pictures = np.bincount(shares[:, chosen].argmax(1), weights=counts, minlength=len(chosen))
        if pictures.min() >= config.smallest_bucket:
            break
        chosen.pop(int(pictures.argmin()))
    return [sizes[number] for number in chosen]


def nearest(sizes: list[Size], size: Size) -> Size:
    """The shape whose proportions are nearest to those of `size`."""
    shares = kept(np.array([size[0]]), np.array([size[1]]), sizes)
    return sizes[int(shares.argmax())]


def assign(heights: np.ndarray, widths: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """Number of the shape at which each picture keeps most, int64 N."""
    return kept(heights, widths, sizes).argmax(1)


def table(heights: np.ndarray, widths: np.ndarray, sizes: list[Size], size: Size) -> list[tuple[str, int, str]]:
    """What goes where: (shape, pictures, share of their area cropped away), and the same of all of them together.

    Args:
        heights: of the pictures to train on.
        widths: of the same.
        sizes: the shapes.
        size: the one shape that there would be without buckets.
    """
    shares, numbers = kept(heights, widths, sizes), assign(heights, widths, sizes)
    lost = 1 - shares.max(1)
    lines = []
    for number, (height, width) in enumerate(sizes):
        inside = numbers == number
        if inside.any():
            note = f"{lost[inside].mean():.1%} of their area cropped away"
            lines.append((f"bucket {height}×{width}", int(inside.sum()), note))
    alone = 1 - kept(heights, widths, [size]).mean()
    all_of_them = f"{lost.mean():.1%} of their area cropped away; {alone:.1%} at {size[0]}×{size[1]} alone"
    return [*lines, ("in buckets", len(heights), all_of_them)]


def _best(shares: np.ndarray, below: np.ndarray, most: int) -> list[int]:
    """The fewest numbers, `most` at most and rising, whose shapes keep most: exact, by dynamic programming.

    A picture is kept best by one of the two chosen shapes that its proportions lie between, so the best choice that
    ends at shape j extends a best one that ends at some i < j.

    Args:
        shares: M×K, what the shapes, from tall to wide, keep of kinds of pictures.
        below: M×K, whether a kind's proportions are at most those of the shape.
    """
    kinds, count = shares.shape
    between = np.full((count, count), -np.inf)
    for i in range(count - 1):
        gains = np.maximum(shares[:, i : i + 1], shares[:, i + 1 :])
        between[i, i + 1 :] = (gains * (below[:, i + 1 :] & ~below[:, i : i + 1])).sum(0)
    beyond = (shares * ~below).sum(0)
    value, ways = (shares * below).sum(0), [[number] for number in range(count)]
    best, chosen = -np.inf, [0]
    for _ in range(min(most, count)):
        last = int((value + beyond).argmax())
        if (value + beyond)[last] <= best + 1e-9 * kinds:
            break
        best, chosen = float((value + beyond)[last]), ways[last]
        before = (value[:, None] + between).argmax(0)
        value = (value[:, None] + between).max(0)
        ways = [[*ways[i], number] for number, i in enumerate(before.tolist())]
    return chosen
