"""One picture file as the pixels that training wants: turned, on its background, resized, cropped."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from rectiflow.base.errors import InputError
from rectiflow.data.config import DataConfig

# Twice PIL's own threshold of a warning: where it begins to refuse.
MAX_PIXELS = 178_956_970
GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


class Unusable(Exception):
    """A file that is no picture to train on; its message says why in a few words."""


@dataclass(frozen=True)
class Facts:
    """What a file holds.

    Args:
        height: in pixels, after turning.
        width: in pixels, after turning.
        grey: whether it has no colour by its kind.
        digest: of its bytes.
        film: of a clip, its times; None of a picture.
    """

    height: int
    width: int
    grey: bool
    digest: str
    film: "Film | None" = None


@dataclass(frozen=True)
class Film:
    """The times of a film, in seconds.

    Args:
        first: when the first frame is shown.
        end: up to when the last frame may be taken.
        gap: usual time between frames.
        rate: its own rate, frames a second.
        frames: how many it has.
        varies: whether they follow one another unevenly.
        turned: whether its file says that they are to be turned or mirrored.
    """

    first: float
    end: float
    gap: float
    rate: float
    frames: int
    varies: bool
    turned: bool


def inspect(file: Path | bytes, whole: bool) -> Facts:
    """Read the facts of a file, or of its bytes; with `whole`, decode every pixel: truncation shows only then.

    Raises:
        Unusable: it is no picture, is cut off, is enormous, or cannot be read.
    """
    content = _read(file)
    image = _open(content)
    height, width = _turned_size(image)
    grey = image.mode in GREY
    if whole:
        _load(image)
    return Facts(height, width, grey, blake2b(content, digest_size=16).hexdigest())


def decode(
    file: Path | bytes, config: DataConfig, size: tuple[int, int], grey: bool, place: Sequence[float]
) -> np.ndarray:
    """A file as uint8 C×H×W.

    Args:
        file: where it lies, or its bytes.
        config: background, filter.
        size: H, W wanted: the picture is resized to cover it, or to a scale that is asked for, then cropped.
        grey: one channel or three.
        place: where the crop lies in what is left over, down and across, and which scale it has between the least and
            the most that `config.scale` gives, each in [0, 1]; ½ is the centre.

    Raises:
        Unusable: it cannot be read (any more).
    """
    if config.scale is not None:
        return _window(_whole(file, grey, config.background), config, size, place)
    image = _open(_read(file))
    height, width = _turned_size(image)
    turned = (height, width) != (image.height, image.width)
    cover = _cover((height, width), size)
    # A JPEG is decoded at ½, ¼ or ⅛ where that is still twice the size wanted.
    image.draft(None, (2 * cover[0], 2 * cover[1]) if turned else (2 * cover[1], 2 * cover[0]))
    _load(image)
    image = flatten(ImageOps.exif_transpose(image), grey, config.background)
    return _cropped(image, cover, config, size, place)


def fit(image: Image.Image, config: DataConfig, size: tuple[int, int], place: Sequence[float]) -> np.ndarray:
    """A picture of `flatten` as uint8 C×H×W, resized and cropped as `decode` does it, a large one through a half, a
    quarter or an eighth of its size.
    """
    if config.scale is not None:
        return _window(image, config, size, place)
    cover = _cover((image.height, image.width), size)
    for factor in (8, 4, 2):  # as a JPEG is decoded
        if image.height >= 2 * factor * cover[0] and image.width >= 2 * factor * cover[1]:
            image = image.reduce(factor)
            break
    return _cropped(image, cover, config, size, place)


def _cover(shown: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The least height and width of the proportions of `shown` that cover `size`."""
    scale = max(size[0] / shown[0], size[1] / shown[1])
    return max(round(shown[0] * scale), size[0]), max(round(shown[1] * scale), size[1])


def _cropped(
    image: Image.Image, cover: tuple[int, int], config: DataConfig, size: tuple[int, int], place: Sequence[float]
) -> np.ndarray:
    if image.size != (cover[1], cover[0]):
        image = image.resize((cover[1], cover[0]), _FILTERS[config.filter])
    top, left = (round((c - s) * p) for c, s, p in zip(cover, size, place[:2], strict=True))
    pixels = np.asarray(image)[top : top + size[0], left : left + size[1]]
    return pixels[None] if image.mode == "L" else np.moveaxis(pixels, -1, 0)


@lru_cache(maxsize=4)
def _whole(file: Path | bytes, grey: bool, colour: str) -> Image.Image:
    """A picture at its full size; the last few are kept, since crops of one large picture are often asked for."""
    image = _open(_read(file))
    _load(image)
    return flatten(ImageOps.exif_transpose(image), grey, colour)


def _window(image: Image.Image, config: DataConfig, size: tuple[int, int], place: Sequence[float]) -> np.ndarray:
    """A crop of a picture at a scale between the least and the most, evenly in its logarithm; C×H×W."""
    assert config.scale is not None
    least, most = config.scale
    covering = max(size[0] / image.height, size[1] / image.width)
    scale = max(least * (most / least) ** place[2], covering)
    window = [min(side / scale, full) for side, full in zip(size, (image.height, image.width), strict=True)]
    if scale == 1:
        window = [float(side) for side in size]
    top = (image.height - window[0]) * place[0]
    left = (image.width - window[1]) * place[1]
    if scale == 1:  # the picture's own pixels, untouched
        top, left = round(top), round(left)
    box = (left, top, left + window[1], top + window[0])
    pixels = np.asarray(image.resize((size[1], size[0]), _FILTERS[config.filter], box=box))
    return pixels[None] if image.mode == "L" else np.moveaxis(pixels, -1, 0)


def background(name: str) -> tuple[int, ...]:
    """Red, green and blue of a colour's name.

    Raises:
        InputError: there is no such colour.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise InputError(
            f"data.background: '{name}' is no colour; expected a name such as white, or #rrggbb."
        ) from error


def _read(file: Path | bytes) -> bytes:
    try:
        return file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise Unusable((error.strerror or "cannot be read").lower()) from error


def opened(file: Path) -> Image.Image:
    """A picture file, not yet decoded.

    Raises:
        Unusable: it is none, or is enormous.
    """
    return _open(_read(file))


def _open(content: bytes) -> Image.Image:
    if not content:
        raise Unusable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of sizes that we judge ourselves
            image = Image.open(BytesIO(content))
    except DecompressionBombError as error:
        raise Unusable("enormous") from error
    except UnidentifiedImageError as error:
        raise Unusable("not a picture") from error
    except Exception as error:  # a decoder may raise anything on bytes that it does not expect
        raise Unusable("damaged") from error
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("enormous")
    return image


def _load(image: Image.Image) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except DecompressionBombError as error:
        raise Unusable("enormous") from error
    except Exception as error:
        raise Unusable("truncated or damaged") from error


def _turned_size(image: Image.Image) -> tuple[int, int]:
    try:
        sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF data say nothing
        sideways = False
    return (image.width, image.height) if sideways else (image.height, image.width)


def flatten(image: Image.Image, grey: bool, colour: str) -> Image.Image:
    """Eight bits, grey or RGB, on a background where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image).astype(np.float64)
        # Only I;16 states its range; of the others the values tell: unit, 8 or 16 bits.
        tops = [65535] if image.mode.startswith("I;") else [1, 255, 65535] if image.mode == "F" else [255, 65535]
        top = next((top for top in tops if levels.max(initial=0) <= top), tops[-1])
        image = Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (*background(colour), 255))
        image = Image.alpha_composite(below, image)
    return image.convert("L" if grey else "RGB")
