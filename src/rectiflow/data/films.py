"""Films as the clips that training wants: their times, the windows that they are cut into, and the pixels of one."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rectiflow.data.config import DataConfig
from rectiflow.data.containers import is_cut
from rectiflow.data.decode import GREY, Facts, Film, Unusable, fit, flatten
from rectiflow.data.film_frames import (
    ANIMATED,
    DAMAGED,
    FILMS,
    LOOSE,
    Bounds,
    Frame,
    check_there,
    frames_of,
    last_instant,
    packet_times,
    taken,
)

_UNEVEN = 0.0015  # seconds: webm counts in milliseconds
_HELD = 100  # instants for each frame: a film of more is a picture, or its times are wrong


class Window(NamedTuple):
    """A clip's place in its film: instants start, start + 1/rate, …

    Attributes:
        start: of its first instant, in seconds of the film.
        rate: instants a second.
        gap: usual time between the film's frames.
    """

    start: float
    rate: float
    gap: float


def is_film(path: str) -> bool:
    """Whether a file may hold more than one frame, by its name."""
    return Path(path).suffix.lower() in FILMS | ANIMATED


def inspect_film(path: Path, whole: bool) -> Facts:
    """Read the facts of a film; `film` is None if an animated picture has one frame.

    Args:
        path: where it lies.
        whole: decode every frame, one after another; else the times are taken from the container, and one frame is
            decoded.

    Raises:
        Unusable: it is no film, is cut off, or cannot be read.
    """
    check_whole(path)
    frames = frames_of(path)
    first = next(frames, None)
    if first is None:
        raise Unusable("no frames")
    image = first.image()
    grey = image.mode in GREY
    times = None if whole or path.suffix.lower() in ANIMATED else packet_times(path)
    if times is None:
        times = [(frame.time, frame.lasts) for frame in _each(first, frames)]
    frames.close()  # type: ignore[attr-defined]
    if len(times) == 1 and path.suffix.lower() not in ANIMATED:
        raise Unusable("one frame")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    film = film_of(times, first.turned) if len(times) > 1 else None
    return Facts(image.height, image.width, grey, digest, film)


def check_whole(path: Path) -> None:
    """Nothing, if a film can be opened, is not empty, and does not end before its container says.

    Raises:
        Unusable: it does, or cannot.
    """
    check_there(path)
    if is_cut(path):
        raise Unusable(DAMAGED)


def how_many(film: Film, frames: int, rate: float | None) -> tuple[int, int]:
    """How many windows a film has, one after another without overlap, and how many instants are left at its end.

    Args:
        film: its times.
        frames: T.
        rate: instants a second; None is the film's own rate.

    Raises:
        Unusable: the same frames would be taken over and over.
    """
    instants = int((film.end - film.first) * (rate or film.rate) + 1e-6) + 1
    if instants > _HELD * film.frames:
        raise Unusable("stands still nearly all the time, or its times are wrong")
    return divmod(instants, frames)


def windows(film: Film, frames: int, rate: float | None) -> list[Window]:
    """The windows of a film; see `how_many`."""
    count, _ = how_many(film, frames, rate)
    rate = film.rate if rate is None else rate
    return [Window(film.first + number * frames / rate, rate, film.gap) for number in range(count)]


def read_window(
    path: Path,
    window: Window,
    config: DataConfig,
    shape: Sequence[int],
    place: Sequence[float],
    bounds: Bounds = LOOSE,
) -> np.ndarray:
    """The clip at a window, uint8 C×T×H×W, of which every frame is resized and cropped alike.

    Args:
        path: where the film lies.
        window: when.
        config: background, filter, scale.
        shape: C, T, H, W.
        place: as for `decode`.
        bounds: of what is decoded.

    Raises:
        Unusable: it cannot be read (any more), or ends before the window does.
        InputError: PyAV is not installed.
    """
    channels, count, height, width = shape
    instants = [window.start + number / window.rate for number in range(count)]
    clip = np.empty((channels, count, height, width), np.uint8)
    before: Frame | None = None
    for number, frame in enumerate(taken(frames_of(path, window.start, bounds), instants, window.gap)):
        if before is not None and frame.time == before.time:
            clip[:, number] = clip[:, number - 1]
        else:
            image = flatten(frame.image(), channels == 1, config.background)
            clip[:, number] = fit(image, config, (height, width), place)
        before = frame
    return clip


def _each(first: Frame, others: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from others


def film_of(times: Sequence[tuple[float, float]], turned: bool = False) -> Film:
    """The times of a film by those of its frames, two at least, and the seconds that each lasts."""
    starts = np.array([time for time, _ in times])
    gaps = np.diff(starts)
    mean, usual = float(gaps.mean()), float(np.median(gaps))
    varies = bool((np.abs(gaps - mean) > max(_UNEVEN, 0.05 * mean)).any())
    # The mean of rounded times is exact where the frames are even.
    gap = usual if varies else mean
    return Film(float(starts[0]), last_instant(*times[-1], gap), gap, 1 / gap, len(times), varies, turned)
