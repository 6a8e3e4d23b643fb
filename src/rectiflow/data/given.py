"""Pictures that a user gives as conditions, out of files."""

from collections import deque
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, decode, fit, flatten
from rectiflow.data.images import to_float
from rectiflow.data.survey import EXTENSIONS

if TYPE_CHECKING:
    from rectiflow.data.film_frames import Frame

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


def read_end(path: Path, count: int, shape: tuple[int, ...]) -> Tensor:
    """The last `count` frames of a film, at its own rate, for clips of shape C×T×H×W: 1×C×count×H×W in [−1, 1].

    Raises:
        InputError: no film, or one of fewer frames; one line.
    """
    from rectiflow.data.films import Window, inspect_film, read_window

    try:
        film = inspect_film(path, whole=True).film
        if film is None or film.frames < count:
            found = 1 if film is None else film.frames
            raise InputError(f"{path} has {found} frames, expected {count} at least to go on from.")
        # The last frame may be held for long; where gaps are uneven, their usual length does not tell when it comes.
        last = film.first + (film.frames - 1) / film.rate
        shown = film.end if film.varies else min(film.end, last)
        window = Window(shown - (count - 1) / film.rate, film.rate, film.gap)
        clip = read_window(path, window, _PLAIN, (shape[0], count, *shape[-2:]), _CENTRE)
    except Unusable as problem:
        raise InputError(f"{path}: {problem}; expected a film, such as .mp4, .webm or .gif.") from problem
    return to_float(torch.from_numpy(clip))[None]


class Ending(NamedTuple):
    """How a film ends.

    Attributes:
        frames: its last ones, uint8 T×H×W×C.
        length: frames of the whole film.
        rate: frames a second.
    """

    frames: Tensor
    length: int
    rate: float


def read_film(path: Path, channels: int, size: tuple[int, int], most: int, last: int | None = None) -> Ending:
    """The last frames of a film as they follow each other; no more than these are held.

    Args:
        path: where it lies.
        channels: C.
        size: H, W, which the frames are resized to cover and cropped to.
        most: frames of a film; no more are decoded.
        last: frames to keep; None is all.

    Raises:
        InputError: no film, more frames than `most`, or too large ones; one line.
    """
    clip, times, pixels = deque[Tensor](maxlen=last), list[float](), 0
    try:
        for frame in _frames(path, most):
            image = flatten(frame.image(), channels == 1, _PLAIN.background)
            pixels += image.width * image.height
            if image.width * image.height > _LARGEST or pixels > _MOST:
                raise InputError(
                    f"the film is {image.width}×{image.height}; expected at most {_LARGEST:,} pixels a frame, and "
                    f"{_MOST:,} in all."
                )
            clip.append(torch.from_numpy(np.array(fit(image, _PLAIN, size, _CENTRE))))
            times.append(frame.time)
    except Unusable as problem:
        raise InputError(f"{problem}; expected a film, such as an mp4 file.") from problem
    if len(times) < 2 or times[-1] <= times[0]:
        raise InputError(f"{len(times)} frames in it; expected a film of two at least.")
    frames = torch.stack(list(clip)).permute(0, 2, 3, 1)
    return Ending(frames, len(times), (len(times) - 1) / (times[-1] - times[0]))


def _frames(path: Path, most: int) -> "Iterator[Frame]":
    from rectiflow.data.film_frames import check_there, frames_of

    check_there(path)
    for number, frame in enumerate(frames_of(path)):
        if number == most:
            raise InputError(f"the film has more than {most} frames; cut it.")
        yield frame


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
