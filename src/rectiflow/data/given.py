"""Pictures that a user gives as conditions, out of files."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, decode
from rectiflow.data.film_frames import LOOSE, Bounds, frames_of
from rectiflow.data.films import Window, check_whole, film_of, read_window
from rectiflow.data.images import to_float
from rectiflow.data.survey import EXTENSIONS

_PLAIN, _CENTRE = DataConfig(set="folder"), (0.5, 0.5, 1.0)
_LARGEST, _MOST = 2**23, 2**31  # pixels of a frame, and of all frames, of a film that is read whole


def read_given(path: Path, config: PictureConfig, shape: tuple[int, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """What `Request.picture` is of a picture, or of each in a folder in the order of their names; and their names.

    They are resized to cover the size that is wanted of them and cropped to their centre, as training reads pictures.

    Args:
        path: a file or a folder.
        config: what is given.
        shape: C, H, W of the pictures to make.

    Raises:
        InputError: nothing there, no picture, or none with anything to fill; one line.
    """
    if not path.exists():
        raise InputError(f"--picture {path}: no such file or folder; expected a picture, or a folder of them.")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS)
    if not files:
        raise InputError(f"--picture {path} holds no pictures; expected files such as .png or .jpg in it.")
    channels, height, width = degradation(config).shape(shape)
    read = _masked if config.kind == "masked" else _plain
    pictures = []
    for file in files:
        try:
            pictures.append(read(file, (height, width), grey=shape[0] == 1 or channels == 1))
        except Unusable as problem:
            raise InputError(f"--picture {file}: {problem}; take it away, or give another.") from problem
    stems, whole = (tuple(getattr(file, part) for file in files) for part in ("stem", "name"))
    return torch.stack(pictures), stems if len(set(stems)) == len(stems) else whole


def read_frame(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A picture as a frame of clips of shape C×T×H×W: 1×C×1×H×W in [−1, 1].

    Raises:
        InputError: no picture; one line.
    """
    try:
        return _decoded(path, (shape[-2], shape[-1]), grey=shape[0] == 1)[None, :, None]
    except Unusable as problem:
        raise InputError(f"{path}: {problem}; expected a picture that clips begin or end with.") from problem


class Ending(NamedTuple):
    """How a film ends, at its own rate up to when its last frame appears, however long that is shown.

    Attributes:
        frames: its last ones, uint8 T×H×W×C.
        length: frames of the whole film.
        rate: frames a second.
    """

    frames: Tensor
    length: int
    rate: float


def read_end(path: Path, count: int, shape: tuple[int, ...]) -> tuple[Tensor, float]:
    """The last `count` frames of a film, for clips of shape C×T×H×W: 1×C×count×H×W in [−1, 1]; and its rate.

    Raises:
        InputError: no film, or one of fewer frames; one line.
    """
    try:
        ending = _ending(path, shape[0], (shape[-2], shape[-1]), count)
    except Unusable as problem:
        raise InputError(f"{path}: {problem}; expected a film, such as .mp4, .webm or .gif.") from problem
    if ending.length < count:
        raise InputError(f"{path} has {ending.length} frames, expected {count} at least to go on from.")
    return to_float(ending.frames.permute(3, 0, 1, 2))[None], ending.rate


def read_film(path: Path, channels: int, size: tuple[int, int], most: int, last: int | None = None) -> Ending:
    """The last frames of a film, as `read_end` takes them; no more than these are held.

    Args:
        path: where it lies.
        channels: C.
        size: H, W, which the frames are resized to cover and cropped to.
        most: frames of a film; no more are decoded.
        last: frames to keep; None is all.

    Raises:
        InputError: no film, more frames than `most`, or too large ones; one line.
    """
    try:
        return _ending(path, channels, size, last, Bounds(_LARGEST, _MOST, most))
    except Unusable as problem:
        raise InputError(
            f"{problem}; expected a film, such as an mp4 file, of at most {most:,} frames, {_LARGEST:,} pixels a frame "
            f"and {_MOST:,} in all."
        ) from problem


def _ending(path: Path, channels: int, size: tuple[int, int], last: int | None, bounds: Bounds = LOOSE) -> Ending:
    check_whole(path)
    times = [(frame.time, frame.lasts) for frame in frames_of(path, bounds=bounds)]
    if len(times) < 2:
        raise Unusable("one frame" if times else "no frames")
    film, end = film_of(times), times[-1][0]
    length = 1 + int((end - film.first) * film.rate + 1e-6)
    bounds.check(0, length)
    count = length if last is None else min(last, length)
    window = Window(end - (count - 1) / film.rate, film.rate, film.gap)
    clip = read_window(path, window, _PLAIN, (channels, count, *size), _CENTRE, bounds)
    return Ending(torch.from_numpy(clip).permute(1, 2, 3, 0), length, film.rate)


def _plain(file: Path, size: tuple[int, int], grey: bool) -> Tensor:
    return _decoded(file, size, grey)


def _masked(file: Path, size: tuple[int, int], grey: bool) -> Tensor:
    """Colours where a picture is opaque, zero elsewhere, and a last channel that says which."""
    decode(file, _PLAIN, size, grey, _CENTRE)  # says what is wrong with a file that cannot be read
    with Image.open(file) as image:
        whole = ImageOps.exif_transpose(image).convert("RGBA")
    colours = _decoded(_png(whole.convert("RGB")), size, grey)
    seen = (_decoded(_png(whole.getchannel("A")), size, grey=True) == 1).to(colours)
    if bool(seen.all()) or not bool(seen.any()):
        raise Unusable("has no transparent pixels, which are what is filled" if bool(seen.all()) else "shows nothing")
    return torch.cat([colours * seen, seen])


def _decoded(file: Path | bytes, size: tuple[int, int], grey: bool) -> Tensor:
    return to_float(torch.from_numpy(np.array(decode(file, _PLAIN, size, grey, _CENTRE))))


def _png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
