"""Frames of films one after another, with their times: by PyAV, or of animated pictures by Pillow.

Nothing is held but the frame that is looked at.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.decode import MAX_PIXELS, Unusable, opened

FILMS = frozenset({".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi"})
ANIMATED = frozenset({".gif", ".webp"})
DAMAGED = "truncated or damaged"
# Of films, whatever their names end in; there are others that open further files and addresses which a file names.
_READERS = "mov,matroska,avi,mpegts,mpeg,m4v,flv,asf,ogg"
_ODD = 16  # pixels wider or higher than this are no film's
_CLOSE = 1e-6
_BACK = (0.0, 2.0, 10.0)
_USUAL = 0.1  # seconds that a frame lasts whose file says 0, as browsers have it
_TURNS = {
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


class Frame(NamedTuple):
    """A frame of a film.

    Attributes:
        time: when it is shown first, in seconds; a film may begin at another time than 0.
        lasts: seconds for which it is shown; 0 if the file does not say.
        image: makes it a picture, turned as its file says, with square pixels.
        turned: whether it is turned or mirrored.
    """

    time: float
    lasts: float
    image: Callable[[], Image.Image]
    turned: bool = False


class Bounds(NamedTuple):
    """How much of a film is decoded at most; what is more makes it unusable.

    Attributes:
        frame: pixels of a frame, once they are square.
        whole: pixels of all its frames, with those that are never shown.
        frames: how many these are.
    """

    frame: int = MAX_PIXELS
    whole: int = sys.maxsize
    frames: int = sys.maxsize

    def pixels(self, width: int, height: int, aspect: Fraction | None = None) -> int:
        """Those of a frame, once they are square.

        Args:
            width: in pixels.
            height: in pixels.
            aspect: how many times as wide as high a pixel is; None is once.

        Raises:
            Unusable: they are too many, or absurdly wide or high.
        """
        if aspect and not 1 / _ODD <= aspect <= _ODD:
            raise Unusable(f"its pixels are {float(aspect):g} times as wide as high")
        count = width * height * max(1, float(aspect or 1))
        if count > self.frame:
            raise Unusable("enormous")
        return round(count)

    def check(self, pixels: int, frames: int) -> None:
        """Nothing, if so many frames of so many pixels together may be decoded.

        Raises:
            Unusable: they may not.
        """
        if frames > self.frames:
            raise Unusable(f"more than {self.frames:,} frames")
        if pixels > self.whole:
            raise Unusable(f"more than {self.whole:,} pixels in all")


LOOSE = Bounds()  # of a film that nobody else has sent


def load_av() -> Any:
    """PyAV.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(
            "clips are read and written by PyAV, which is not installed: pip install 'rectiflow[video]'."
        ) from error
    return av


def frames_of(path: Path, since: float = -np.inf, bounds: Bounds = LOOSE) -> Iterator[Frame]:
    """The frames of a film in the order of their times, from the one that is shown at `since` or one before it.

    Raises:
        InputError: PyAV is not installed.
        Unusable: it cannot be read, or is beyond the bounds; what came before has been given.
    """
    check_there(path)
    animated = path.suffix.lower() in ANIMATED
    if not animated:
        load_av()
    last = -np.inf
    try:
        for frame in _of_animation(path, bounds) if animated else _of_film(path, since, bounds):
            if frame.time > last:
                yield frame
                last = frame.time
    except (Unusable, InputError):
        raise
    except Exception as error:  # a decoder may raise anything on bytes that it does not expect
        raise Unusable(DAMAGED) from error


def check_there(path: Path) -> None:
    """Nothing, if a file can be opened and is not empty.

    Raises:
        Unusable: it cannot, or it is.
    """
    try:
        with path.open("rb") as file:
            some = file.read(1)
    except OSError as error:
        raise Unusable((error.strerror or "cannot be read").lower()) from error
    if not some:
        raise Unusable("empty file")


def taken(frames: Iterator[Frame], instants: Sequence[float], gap: float) -> Iterator[Frame]:
    """For each instant the frame nearest to it in time; one that is held for longer than `gap` is taken for as long as
    it is shown.

    Frame j gives way to j + 1 at half of min(gap, t_{j+1} − t_j) before t_{j+1}. As many frames are read as it takes.

    Args:
        frames: in the order of their times.
        instants: seconds, in their order.
        gap: usual time between frames.

    Raises:
        Unusable: the frames end before the last instant.
    """
    held: Frame | None = None
    done = 0
    for frame in frames:
        if held is not None:
            switch = frame.time - min(gap, frame.time - held.time) / 2
            while done < len(instants) and instants[done] < switch + _CLOSE:
                yield held
                done += 1
        if done == len(instants):
            return
        held = frame
    if held is None or instants[-1] > last_instant(held.time, held.lasts, gap) + _CLOSE:
        raise Unusable("shorter than it was")
    for _ in instants[done:]:
        yield held


def last_instant(time: float, lasts: float, gap: float) -> float:
    """Up to when the last frame of a film may be taken, which is shown at `time` and lasts for `lasts`."""
    return time + max(gap / 2, lasts - gap / 2)


def packet_times(path: Path) -> list[tuple[float, float]] | None:
    """(time, seconds that it lasts) of each frame by the container alone, in their order; None if it does not say of
    each. Nothing is decoded.

    Raises:
        Unusable: it cannot be read.
    """
    try:
        with _film(path) as (container, stream):
            unit, counted = float(stream.time_base), container.format.name == "avi"
            # Times alone: what is coded would be as large as the file.
            told = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.size and not p.is_discard]
            if counted:
                return [(n / float(stream.average_rate), 0.0) for n in range(len(told))]
            if any(time is None for time, _ in told):
                return None
            return sorted({time: (time * unit, lasts * unit) for time, lasts in told}.values())
    except (Unusable, InputError):
        raise
    except Exception as error:  # a reader may raise anything on bytes that it does not expect
        raise Unusable(DAMAGED) from error


def _of_film(path: Path, since: float, bounds: Bounds) -> Iterator[Frame]:
    for back in _BACK if np.isfinite(since) else ():
        with _film(path, bounds) as (container, stream):
            frames = _from_key_frame(container, stream, since - back, bounds)
            # Containers seek by the time of decoding, which comes before that of showing.
            first = next(frames, None)
            if first is not None and first.time <= since + _CLOSE:
                yield first
                yield from frames
                return
    with _film(path, bounds) as (container, stream):
        yield from _decoded(container, stream, container.demux(stream), bounds, strict=True)


@contextmanager
def _film(path: Path, bounds: Bounds = LOOSE) -> Iterator[tuple[Any, Any]]:
    """A film, and its stream of pictures."""
    av = load_av()
    # Of a relative name such as a:b.mp4 FFmpeg would take the beginning for a protocol.
    name, readers = str(path.absolute()), {"format_whitelist": _READERS}
    # A codec counts what it decodes, which may be more than is shown; it is opened for a look at the file already.
    most = {"max_pixels": str(2 * bounds.frame)}
    with av.open(name, metadata_errors="replace", options=most, container_options=readers) as container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise Unusable("no video stream")
        coder = streams[0].codec_context
        if coder is None:
            raise Unusable("its codec is not known here")
        bounds.pixels(coder.width, coder.height, streams[0].sample_aspect_ratio)
        coder.options = most
        # A batch's clips are decoded by several processes: more threads would only get in one another's way.
        coder.thread_count = 1
        yield container, streams[0]


def _from_key_frame(container: Any, stream: Any, target: float, bounds: Bounds) -> Iterator[Frame]:
    """The frames from the last key frame before `target` on; none if the film cannot be entered there."""
    counted = container.format.name == "avi"
    if counted and stream.codec_context.has_b_frames:  # avi has no times of showing: count from the beginning
        return
    try:
        container.seek(int(target / stream.time_base), stream=stream, backward=True)
    except Exception:  # not every file can be entered in the middle
        return
    packets = container.demux(stream)
    first = next((packet for packet in packets if packet.is_keyframe), None)
    if first is None or (first.dts if counted else first.pts) is None:
        return
    key = float((first.dts if counted else first.pts) * stream.time_base)
    count = round(key * stream.average_rate) if counted else 0
    # Frames before the key frame refer to others that have not been read.
    for frame in _decoded(container, stream, chain([first], packets), bounds, count):
        if frame.time > key - _CLOSE:
            yield frame


def _decoded(
    container: Any, stream: Any, packets: Iterator[Any], bounds: Bounds, count: int = 0, strict: bool = False
) -> Iterator[Frame]:
    counted = container.format.name == "avi"
    colours = load_av().video.reformatter.VideoReformatter()
    frames = pixels = 0
    for packet in packets:
        for frame in packet.decode():
            aspect = stream.sample_aspect_ratio
            frames, pixels = frames + 1, pixels + bounds.pixels(frame.width, frame.height, aspect)
            bounds.check(pixels, frames)
            if strict and frame.is_corrupt:
                raise Unusable(DAMAGED)
            rate = stream.average_rate or 25
            time = float(count / rate) if counted or frame.pts is None else float(frame.pts * frame.time_base)
            count += 1
            yield _frame(frame, time, aspect, colours)


def _frame(frame: Any, time: float, aspect: Any, colours: Any) -> Frame:
    turn = _turn(frame)

    def image() -> Image.Image:
        try:
            kind = "gray" if frame.format.name.startswith("gray") else "rgb24"
            # Threads of a context that is freed in a forked process are waited for without end.
            picture = Image.fromarray(colours.reformat(frame, format=kind, threads=1).to_ndarray())
        except Exception as error:  # there are kinds of pixels that are not converted
            raise Unusable("its pixels cannot be converted") from error
        if aspect and aspect != 1:
            picture = picture.resize((max(1, round(picture.width * aspect)), picture.height), Image.Resampling.BICUBIC)
        return picture.transpose(turn) if turn is not None else picture

    return Frame(time, float((frame.duration or 0) * frame.time_base), image, turn is not None)


def _turn(frame: Any) -> Image.Transpose | None:
    """How a frame is turned for showing: x′ = a·x + c·y, y′ = b·x + d·y, a … d in the file's matrix."""
    held = frame.side_data.get("DISPLAYMATRIX")
    if held is None:
        return None
    matrix = np.frombuffer(bytes(held), np.int32).reshape(3, 3)[:2, :2] / 65536
    a, b, c, d = (round(float(value)) for value in matrix.flatten())
    return _TURNS.get((a, b, c, d))


def _itself(image: Image.Image) -> Image.Image:
    return image


def _of_animation(path: Path, bounds: Bounds) -> Iterator[Frame]:
    image, time, pixels = opened(path), 0.0, 0
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        pixels += bounds.pixels(*image.size)
        bounds.check(pixels, number + 1)
        image.load()
        lasts = (image.info.get("duration") or 0) / 1000 or _USUAL
        yield Frame(time, lasts, partial(_itself, image.copy()))
        time += lasts
