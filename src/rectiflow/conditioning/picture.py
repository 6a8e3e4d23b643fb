"""Pictures as conditions: what is given of a true picture, and how a network is told of it.

x is a picture, B×C×H×W in [−1, 1], and y what is given of it. A network is told B×(C′+1)×H×W, `Condition.image`: y
brought to H×W, and a last channel that is 1 where y says something.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.conditioning.picture_config import PictureConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL reads a picture as grey
_LONGEST = 2.0  # of a hidden rectangle: its longer side over the shorter

Shape = tuple[int, ...]


class Degradation(ABC):
    """What is given of a picture. Subclasses are final."""

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """Shape of y for a picture of shape C×H×W.

        Raises:
            InputError: nothing can be given of such a picture.
        """

    @abstractmethod
    def channels(self, channels: int) -> int:
        """C′ for pictures of C channels."""

    @abstractmethod
    def given(self, x: Tensor, key: Key, index: Tensor) -> Tensor:
        """y of x, by draws of `key` for the B global indices in `index`, where there is anything to draw."""

    @abstractmethod
    def again(self, x: Tensor, y: Tensor) -> Tensor | None:
        """What would be given of x in the place of the picture that y was given of; None if that cannot be known."""

    @abstractmethod
    def told(self, y: Tensor) -> Tensor:
        """B×(C′+1)×H×W, what a network is told of y."""

    @abstractmethod
    def plain(self, y: Tensor, channels: int) -> dict[str, Tensor]:
        """Pictures B×C×H×W that anyone makes of y without a model, by their names."""

    def put_back(self, x: Tensor, y: Tensor) -> Tensor:
        """x with whatever pixels y gives exactly."""
        return x


@final
class Low(Degradation):
    """Averages over squares of `factor`×`factor` pixels: y is B×C×H/f×W/f, and the network is told each f² times."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def shape(self, shape: Shape) -> Shape:
        """C×H/f×W/f."""
        channels, *sides = shape
        if any(side % self.factor for side in sides):
            near = "×".join(str(max(1, round(side / self.factor)) * self.factor) for side in sides)
            raise InputError(
                f"picture.factor={self.factor} does not divide {sides[0]}×{sides[1]}; the nearest size is {near}."
            )
        return channels, sides[0] // self.factor, sides[1] // self.factor

    def channels(self, channels: int) -> int:
        """C."""
        return channels

    def given(self, x: Tensor, key: Key, index: Tensor) -> Tensor:
        """Averages; nothing is drawn."""
        return F.avg_pool2d(x, self.factor)

    def again(self, x: Tensor, y: Tensor) -> Tensor:
        """Averages."""
        return F.avg_pool2d(x, self.factor)

    def told(self, y: Tensor) -> Tensor:
        """Each number of y, f×f times."""
        return _certain(self._enlarged(y))

    def plain(self, y: Tensor, channels: int) -> dict[str, Tensor]:
        """The nearest number, and bicubic interpolation."""
        bicubic = F.interpolate(y, scale_factor=float(self.factor), mode="bicubic", align_corners=False)
        return {"nearest": self._enlarged(y), "bicubic": bicubic.clamp(-1, 1)}

    def _enlarged(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@final
class Grey(Degradation):
    """The luminance of a coloured picture: y is B×1×H×W."""

    def shape(self, shape: Shape) -> Shape:
        """1×H×W."""
        if shape[0] != 3:
            raise InputError(f"picture.kind=grey needs coloured pictures, and these have {shape[0]} channel; use low.")
        return 1, *shape[1:]

    def channels(self, channels: int) -> int:
        """1."""
        return 1

    def given(self, x: Tensor, key: Key, index: Tensor) -> Tensor:
        """Luminance; nothing is drawn."""
        return _luminance(x)

    def again(self, x: Tensor, y: Tensor) -> Tensor:
        """Luminance."""
        return _luminance(x)

    def told(self, y: Tensor) -> Tensor:
        """y as it is."""
        return _certain(y)

    def plain(self, y: Tensor, channels: int) -> dict[str, Tensor]:
        """Grey, as it was given."""
        return {"grey": y.expand(-1, channels, -1, -1)}


@final
class Masked(Degradation):
    """A picture with a rectangle hidden: y is B×(C+1)×H×W, zero where it is hidden, with a last channel that is 1 where
    it is not.

    Args:
        least: share of the pixels that a rectangle hides, at least.
        most: at most.
    """

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def shape(self, shape: Shape) -> Shape:
        """(C+1)×H×W."""
        return shape[0] + 1, *shape[1:]

    def channels(self, channels: int) -> int:
        """C."""
        return channels

    def given(self, x: Tensor, key: Key, index: Tensor) -> Tensor:
        """x without a rectangle whose share, proportions and place are drawn evenly."""
        height, width = x.shape[-2:]
        share, tallness, top, left = key.uniform(index, (4,)).unbind(1)
        area = (self.least + (self.most - self.least) * share) * height * width
        # In proportions that the picture has room for: no side is longer than the picture's.
        tall = (area * _LONGEST ** (2 * tallness - 1)).sqrt().clamp_max(height).clamp_min(area / width)
        sides = [side.round().clamp_min(1) for side in (tall, area / tall)]
        rows, columns = (
            _within(torch.arange(full), side, ((full - side + 1) * at).floor())
            for full, side, at in zip((height, width), sides, (top, left), strict=True)
        )
        hidden = (rows[:, :, None] & columns[:, None, :])[:, None]
        return self._seen(x, (~hidden).to(x))

    def again(self, x: Tensor, y: Tensor) -> Tensor:
        """x without what is hidden in y."""
        return self._seen(x, y[:, -1:])

    def told(self, y: Tensor) -> Tensor:
        """y as it is."""
        return y

    def plain(self, y: Tensor, channels: int) -> dict[str, Tensor]:
        """The mean colour of what is seen, in what is hidden."""
        seen = y[:, -1:]
        mean = y[:, :-1].sum((-2, -1), keepdim=True) / seen.sum((-2, -1), keepdim=True).clamp_min(1)
        return {"mean colour": torch.where(seen > 0, y[:, :-1], mean)}

    def put_back(self, x: Tensor, y: Tensor) -> Tensor:
        """x where y is hidden, else y."""
        return torch.where(y[:, -1:] > 0, y[:, :-1], x)

    def _seen(self, x: Tensor, seen: Tensor) -> Tensor:
        return torch.cat([x * seen, seen], dim=1)


@final
class Paired(Degradation):
    """Another picture that belongs to x: y is B×C×H×W."""

    def shape(self, shape: Shape) -> Shape:
        """C×H×W."""
        return shape

    def channels(self, channels: int) -> int:
        """C."""
        return channels

    def given(self, x: Tensor, key: Key, index: Tensor) -> Tensor:
        """Never: it lies in a file of its own."""
        raise AssertionError("a paired picture is read, not made")

    def again(self, x: Tensor, y: Tensor) -> None:
        """Unknown."""

    def told(self, y: Tensor) -> Tensor:
        """y as it is."""
        return _certain(y)

    def plain(self, y: Tensor, channels: int) -> dict[str, Tensor]:
        """The picture that is given."""
        return {"as given": y}


def degradation(config: PictureConfig) -> Degradation:
    """What `config` asks for."""
    kinds: dict[str, Degradation] = {
        "low": Low(config.factor),
        "grey": Grey(),
        "masked": Masked(config.least, config.most),
        "paired": Paired(),
    }
    return kinds[config.kind]


def check_given(config: PictureConfig, y: Tensor, shape: Shape) -> None:
    """Nothing, if y is what can be given of pictures of shape C×H×W.

    Raises:
        InputError: it is not.
    """
    expected = degradation(config).shape(shape)
    if y.dim() != 4 or tuple(y.shape[1:]) != expected or not len(y):
        raise InputError(
            f"picture: for pictures of {shape[1]}×{shape[2]} from kind {config.kind}, expected N×"
            f"{'×'.join(map(str, expected))}, received {'×'.join(map(str, y.shape))}; set the size that it is of."
        )


def _certain(image: Tensor) -> Tensor:
    """`image` with a channel of ones."""
    return F.pad(image, (0, 0, 0, 0, 0, 1), value=1.0)


def _luminance(x: Tensor) -> Tensor:
    return torch.einsum("c,bchw->bhw", x.new_tensor(_LUMA), x)[:, None]


def _within(places: Tensor, side: Tensor, start: Tensor) -> Tensor:
    """bool B×L: which of L places lie in the B stretches of this length from this start."""
    after = places - start[:, None]
    return (after >= 0) & (after < side[:, None])
