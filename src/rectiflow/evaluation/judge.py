"""A judge that reads digit, colour and place out of a picture of coloured digits, without being told its caption.

Place: a place holds an object if the middle of its cell is lit, over the background of the picture and beside its
brightest spots, as an eye adapts to both. Colour: the nearest direction among `COLOURS` of most of the object's light;
a direction has no brightness, so a dim red is red. Digit: a support-vector machine on histograms of gradients (Dalal &
Triggs 2005), which tell strokes by their directions and carry over to another writer's hand better than pixels do.

Readers of digits learn from the held-out writers, whom no generator of the set has seen, each digit with small turns,
scalings and shifts. There are as many readers as held-out writers, and each leaves one writer out. Every figure is the
mean over the readers, of made pictures as of real ones, and never a vote: the ceiling on the writer that a reader has
not seen is then a ceiling of just those readers that read the made pictures.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, zoom
from sklearn.svm import SVC
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digits
from rectiflow.data.images import InMemory
from rectiflow.data.scenes import COLOURS, SIDE, Thing

_WRITERS = (130, 122, 130)  # digits of each held-out writer, in their order
_CELL, _DIGIT, _MIDDLE = 10, 8, 2  # pixels of a cell, of a digit in it, and of the rim that a neighbour may run into
_LIT, INK = 0.25, 4.0  # light from which a pixel counts, how much in a cell's middle makes an object (real: over 6)
_BRIGHT, _DIM = 5, 0.4  # bright is a picture's fifth brightest pixel, and at least so much
_COPIES, _TURN, _SCALE, _SHIFT = 6, 10.0, 0.1, 0.75  # copies of a digit, turned by degrees, scaled by e^±, shifted
_BINS = 8
_HUES = F.normalize(torch.tensor(list(COLOURS.values()), dtype=torch.float64), dim=1)


@final
class Judge:
    """Reads scenes, once with each of its readers.

    Args:
        writers: the digits of each held-out writer (1×8×8, with labels); reader k learns from all but the k-th.

    Attributes:
        writers: the same; reader k has not seen the k-th.

    Raises:
        InputError: fewer than two writers.
    """

    def __init__(self, writers: Sequence[InMemory]) -> None:
        if len(writers) < 2:
            raise InputError(f"a judge learns from all writers but one: expected two or more, received {len(writers)}.")
        self.writers = tuple(writers)
        self._readers = [_reader([w for w in self.writers if w is not left_out]) for left_out in self.writers]

    def read(self, pixels: Tensor) -> list[list[tuple[Thing, ...]]]:
        """What each reader sees in each picture, by place: one list for each reader, in it the objects of each picture.

        A place with an object always gets the likeliest digit and colour, were it neither. Each picture is read by
        itself.

        Args:
            pixels: N×3×32×32 in [−1, 1]; what lies beyond is clipped, and what is not a number is black.

        Raises:
            InputError: pictures of another shape.
        """
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, SIDE, SIDE):
            raise InputError(f"the judge reads pictures N×3×{SIDE}×{SIDE}, received {tuple(pixels.shape)}.")
        cells = _cells(light_of(pixels))
        number, place = _lit(cells).nonzero(as_tuple=True)
        objects = cells[number, place]
        colour = colour_votes(objects).argmax(1)
        names = [list(COLOURS)[i] for i in colour.tolist()]
        readings = []
        for seen in self.digits(densest(ink_of(objects, colour)).windows):
            found: list[list[Thing]] = [[] for _ in pixels]
            for picture, digit, name, where in zip(number.tolist(), seen, names, place.tolist(), strict=True):
                found[picture].append(Thing(digit, name, where))
            readings.append([tuple(things) for things in found])
        return readings

    def digits(self, windows: Tensor) -> list[list[int]]:
        """What digit each reader sees in each window of ink, M×8×8: a list for each reader."""
        if not len(windows):
            return [[] for _ in self._readers]
        shapes = _gradients(windows)
        return [reader.predict(shapes).tolist() for reader in self._readers]

    def digit_votes(self, reader: int, windows: Tensor) -> Tensor:
        """M×10: how strongly a reader is for each digit in windows of ink, M×8×8, at least one."""
        return torch.from_numpy(self._readers[reader].decision_function(_gradients(windows)))


def judge() -> Judge:
    """The judge of digit-scenes, from the three held-out writers of the built-in digits; made in seconds."""
    held_out = digits().held_out
    every = held_out.fetch(torch.arange(len(held_out)))
    return Judge([InMemory(*part) for part in zip(every.split(_WRITERS), held_out.labels.split(_WRITERS), strict=True)])


def light_of(pixels: Tensor) -> Tensor:
    """The light of pictures N×3×H×W in [−1, 1] over their background, the median; the bright spots are 1."""
    light = (pixels.double().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) / 2
    light = light - light.flatten(2).median(-1).values[..., None, None]
    bright = light.amax(1).flatten(1).topk(_BRIGHT, 1).values[:, -1]
    return light / bright.clamp_min(_DIM)[:, None, None, None]


def _cells(light: Tensor) -> Tensor:
    """N×9×3×10×10: the light of each place."""
    cells = light[..., 1:-1, 1:-1].unfold(2, _CELL, _CELL).unfold(3, _CELL, _CELL)  # N×3×3×3×10×10
    return cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 9, 3, _CELL, _CELL)


def _lit(cells: Tensor) -> Tensor:
    """N×9: whether there is an object, by the ink in the middle of the cell, which no neighbour's edge reaches."""
    return lit(cells, 2)[..., _MIDDLE:-_MIDDLE, _MIDDLE:-_MIDDLE].sum((-2, -1)) > INK


def lit(light: Tensor, channels: int) -> Tensor:
    """The strongest of the channels of N pictures, over their background and where it counts as lit; else 0."""
    strongest = light.amax(channels)  # of three noisy channels it lies above each one's background
    background = strongest.flatten(1).median(-1).values
    strongest = strongest - background.reshape(-1, *[1] * (strongest.dim() - 1))
    return torch.where(strongest > _LIT, strongest, 0.0)


def colour_votes(objects: Tensor) -> Tensor:
    """M×7: how much each object M×3×h×w is of each colour: each pixel votes for the nearest one, by its light."""
    along = torch.einsum("mchw,kc->mkhw", objects, _HUES)
    strongest, nearest = along.max(1)
    weight = torch.where(strongest > _LIT, strongest, 0.0).flatten(1)
    votes = torch.zeros(len(objects), len(_HUES), dtype=weight.dtype)
    return votes.scatter_add_(1, nearest.flatten(1), weight)


def ink_of(objects: Tensor, colour: Tensor) -> Tensor:
    """M×h×w: how much of its colour each pixel holds, by least squares; less noise than in any one channel."""
    return torch.einsum("mchw,mc->mhw", objects, _HUES[colour]).clamp_min(0)


class Densest(NamedTuple):
    """Windows of most ink.

    Args:
        windows: M×8×8.
        corner: int64 M×2, row and column of their top left pixel.
    """

    windows: Tensor
    corner: Tensor


def densest(ink: Tensor) -> Densest:
    """The 8×8 window of most ink in each of M×h×w; of windows with equal ink the one that it lies in midmost."""
    windows = ink.unfold(1, _DIGIT, 1).unfold(2, _DIGIT, 1)
    columns = windows.shape[2]
    windows = windows.flatten(1, 2)  # M×9×8×8 of 10×10
    from_middle = torch.arange(_DIGIT, dtype=ink.dtype) - (_DIGIT - 1) / 2
    mass = windows.sum((-2, -1)).clamp_min(1e-9)
    off = [(windows.sum(side) @ from_middle / mass).square() for side in (-1, -2)]
    best = (mass / mass.amax(1, keepdim=True) - 0.01 * (off[0] + off[1])).argmax(1)
    corner = torch.stack([best // columns, best % columns], 1)
    return Densest(windows[torch.arange(len(ink)), best], corner)


def _reader(writers: Sequence[InMemory]) -> Any:
    pixels = torch.cat([writer.fetch(torch.arange(len(writer))) for writer in writers]).double()
    labels = torch.cat([writer.labels for writer in writers])
    ink = F.pad((pixels[:, 0] + 1) / 2, (1, 1, 1, 1))
    copies = torch.cat([ink, _enlarged(ink.repeat(_COPIES, 1, 1))])
    return SVC(C=10, gamma=4.0).fit(_gradients(densest(copies).windows), labels.repeat(1 + _COPIES).numpy())


def _enlarged(ink: Tensor) -> Tensor:
    """Each cell M×10×10 with a turn, a scaling of each axis and a shift of its own."""
    draws = 2 * Key(0, "judge").uniform(torch.arange(len(ink)), (5,)).double() - 1
    angle, scale = draws[:, 0] * np.deg2rad(_TURN), torch.exp(_SCALE * draws[:, 1:3])
    shift = 2 * _SHIFT / _CELL * draws[:, 3:5]
    rows = [(angle.cos(), -angle.sin()), (angle.sin(), angle.cos())]
    map_back = torch.stack([torch.stack([*row], 1) * scale for row in rows], 1)  # M×2×2
    grid = F.affine_grid(torch.cat([map_back, shift[..., None]], 2), [len(ink), 1, _CELL, _CELL], align_corners=False)
    return F.grid_sample(ink[:, None], grid, align_corners=False)[:, 0]


def _gradients(digit: Tensor) -> np.ndarray:
    """M×d: how much edge there is in each of eight directions, blurred, at 6×6 points of each digit M×8×8.

    Of one total for each digit, so that dim ones look like bright ones; the root evens out strong edges and weak ones.
    """
    fine = np.pad(zoom(digit.numpy(), (1, 2, 2), order=1), ((0, 0), (1, 1), (1, 1)))  # M×18×18
    down, right = fine[:, 2:, 1:-1] - fine[:, :-2, 1:-1], fine[:, 1:-1, 2:] - fine[:, 1:-1, :-2]
    turn = np.arctan2(down, right) * _BINS / (2 * np.pi)
    found = []
    for direction in range(_BINS):
        away = np.abs((turn - direction + _BINS / 2) % _BINS - _BINS / 2)
        share = np.hypot(down, right) * np.clip(1 - away, 0, 1)
        found.append(gaussian_filter(share, (0, 1.5, 1.5))[:, ::3, ::3])
    edges = np.stack(found, 1).reshape(-1, _BINS * 36)
    return np.sqrt(edges / np.maximum(edges.sum(1, keepdims=True), 1e-9))
