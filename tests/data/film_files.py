"""Films whose frames carry their number, written for tests."""

import os
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS, SIDE = 8, 8


def numbered(number: int, height: int = 2 * SIDE, width: int = 4 * SIDE) -> np.ndarray:
    """H×W×3 with the bits of a number as blocks of 8×8, black or white, four in a row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 4)
        value = 255 if number >> bit & 1 else 0
        pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = value
    return pixels


def number_in(pixels: np.ndarray) -> int:
    """The number that H×W×C (16×32 pixels of it) carries."""
    blocks = pixels[: 2 * SIDE, : 4 * SIDE].astype(float).mean(-1).reshape(2, SIDE, 4, SIDE).mean((1, 3))
    assert (np.abs(blocks - 127.5) > 60).all(), blocks
    return int(((blocks.flatten() > 127.5) * 2 ** np.arange(BITS)).sum())


@contextmanager
def scheduled_as_before():
    """SVT-AV1 gives the thread that opens it the highest priority in real time, if that is allowed, and leaves it so.

    Whatever else runs beside then waits for this process, however many tests come after.
    """
    if not hasattr(os, "sched_setscheduler"):  # Linux alone has it
        yield
        return
    policy, level = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, level)


def write_film(
    path: Path,
    times: list[float],
    codec: str = "libx264",
    turn: int = 0,
    options: dict[str, str] | None = None,
    first: int = 0,
    size: tuple[int, int] = (16, 32),
) -> Path:
    """A film of the frames `first`, `first` + 1, … shown at `times` (seconds), turned counterclockwise by its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with scheduled_as_before(), av.open(str(path), "w") as container:
        rate = Fraction(1 / (times[1] - times[0])).limit_denominator(1001) if len(times) > 1 else 10
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        even = np.allclose(np.diff(times), times[1] - times[0]) if len(times) > 1 else True
        unit = 1 / Fraction(rate) if even else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = unit
        if turn:
            stream.set_display_rotation(turn)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(first + number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, lasts: list[int], first: int = 0) -> Path:
    """A gif or webp of frames that last for milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(numbered(first + number)) for number in range(len(lasts))]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=lasts, **lossless)
    return path


def even(count: int, rate: float = 10) -> list[float]:
    """Times of `count` frames at a rate."""
    return [number / rate for number in range(count)]
