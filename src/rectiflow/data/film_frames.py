"""Frames of films one after another, with their times: by PyAV, or of animated pictures by Pillow.

Nothing is held but the frame that is looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rectiflow.base.errors import InputError
from rectiflow.data.decode import Unusable, opened

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


def frames_of(path: Path, since: float = -np.inf) -> Iterator[Frame]:
    """The frames of a film in the order of their times, from the one that is shown at `since` or one before it.

    Raises:
        InputError: PyAV is not installed.
        Unusable: it cannot be read; what came before has been given.
    """
    check_there(path)
    if path.suffix.lower() in ANIMATED:
        yield from _of_animation(path)
        return
    load_av()
    last = -np.inf
    try:
        for frame in _of_film(path, since):
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


def packet_times(path: Path) -> list[tuple[float, float]]:
    """(time, seconds that it lasts) of each frame by the container alone, in their order; nothing is decoded.

    Raises:
        Unusable: it cannot be read.
    """
    try:
        with _film(path) as (container, stream):
            unit, counted = float(stream.time_base), container.format.name == "avi"
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            if counted:
                return [(n / float(stream.average_rate), 0.0) for n in range(len(packets))]
            return sorted({p.pts: (p.pts * unit, (p.duration or 0) * unit) for p in packets}.values())
    except (Unusable, InputError):
        raise
    except Exception as error:  # a reader may raise anything on bytes that it does not expect
        raise Unusable(DAMAGED) from error


def _of_film(path: Path, since: float) -> Iterator[Frame]:
    for back in _BACK if np.isfinite(since) else ():
        with _film(path) as (container, stream):
            frames = _from_key_frame(container, stream, since - back)
            # Containers seek by the time of decoding, which comes before that of showing.
            first = next(frames, None)
            if first is not None and first.time <= since + _CLOSE:
                yield first
                yield from frames
                return
    with _film(path) as (container, stream):
        yield from _decoded(container, stream, container.demux(stream), strict=True)


@contextmanager
def _film(path: Path) -> Iterator[tuple[Any, Any]]:
    """A film, and its stream of pictures."""
    av = load_av()
    readers = {"format_whitelist": _READERS}
    with av.open(str(path), metadata_errors="replace", container_options=readers) as container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise Unusable("no video stream")
        if streams[0].codec_context is None:
            raise Unusable("its codec is not known here")
        # A batch's clips are decoded by several processes: more threads would only get in one another's way.
        streams[0].codec_context.thread_count = 1
        yield container, streams[0]


def _from_key_frame(container: Any, stream: Any, target: float) -> Iterator[Frame]:
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
    for frame in _decoded(container, stream, chain([first], packets), count):
        if frame.time > key - _CLOSE:
            yield frame


def _decoded(
    container: Any, stream: Any, packets: Iterator[Any], count: int = 0, strict: bool = False
) -> Iterator[Frame]:
    counted = container.format.name == "avi"
    colours = load_av().video.reformatter.VideoReformatter()
    for packet in packets:
        for frame in packet.decode():
            if strict and frame.is_corrupt:
                raise Unusable(DAMAGED)
            rate = stream.average_rate or 25
            time = float(count / rate) if counted or frame.pts is None else float(frame.pts * frame.time_base)
            count += 1
            yield _frame(frame, time, stream.sample_aspect_ratio, colours)


def _frame(frame: Any, time: float, aspect: Any, colours: Any) -> Frame:
    turn = _turn(frame)
    if aspect and not 1 / _ODD <= aspect <= _ODD:
        raise Unusable(f"its pixels are {float(aspect):g} times as wide as high")

    def image() -> Image.Image:
        kind = "gray" if frame.format.name.startswith("gray") else "rgb24"
        # Threads of a context that is freed in a forked process are waited for without end.
        picture = Image.fromarray(colours.reformat(frame, format=kind, threads=1).to_ndarray())
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


def _of_animation(path: Path) -> Iterator[Frame]:
    image, time = opened(path), 0.0
    for number in range(getattr(image, "n_frames", 1)):
        try:
            image.seek(number)
            image.load()
        except Exception as error:  # a decoder may raise anything on bytes that it does not expect
            raise Unusable(DAMAGED) from error
        lasts = (image.info.get("duration") or 0) / 1000 or _USUAL
        yield Frame(time, lasts, partial(_itself, image.copy()))
        time += lasts
