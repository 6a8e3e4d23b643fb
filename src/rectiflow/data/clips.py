"""Clips out of tensors and into files: mp4, gif or a folder of frames; several side by side; and strips of them."""

import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_aside, write_folder, write_text
from rectiflow.data.film_frames import load_av
from rectiflow.data.pictures import grid, save_folder, to_image

SLOWEST, FASTEST = 0.1, 240.0  # frames a second
_USUAL = 8.0
_SHOWN = 256  # screen pixels to which small clips are brought
_COLOURS = 256  # of a gif's frame
_LEAST = 2  # hundredths of a second that a frame of a gif lasts: players take less for a tenth
_GREY = 96
_FRAME = re.compile(r"\d+\.png|metadata\.jsonl")  # as `save_folder` has it
_SMPTE170M, _LIMITED = 6, 1  # the colours of video at standard definition, as H.264 names them


def rate_of(training: Mapping[str, Any]) -> float:
    """Frames a second at which a model's clips are shown where nobody says: those that it was trained at, else 8.

    Args:
        training: what the model says of its training.
    """
    rate = training.get("rate")
    return float(rate) if isinstance(rate, int | float) and SLOWEST <= rate <= FASTEST else _USUAL


def save_clip(pixels: Tensor, path: Path, rate: float, about: Mapping[str, object], scale: int | None = None) -> None:
    """Write a clip: `.mp4` (H.264 that any player takes), `.gif`, or without an ending a folder of PNG files.

    An mp4 has even sides: an odd last row or column is repeated. A gif of at most 256 colours is exact; its frames last
    whole hundredths of a second, at least two. `about` is written as JSON into the comment (of frames, see
    `save_folder`).

    Args:
        pixels: uint8 T×H×W×C, C = 1 or 3.
        path: where to; replaced if it is there.
        rate: frames a second, 0.1 to 240.
        about: the settings that it was made with.
        scale: whole number of screen pixels for each pixel; None brings small clips to about 256 pixels, and leaves
            frames in a folder as they are.

    Raises:
        InputError: another ending, another rate, PyAV missing (mp4 alone), a folder that holds more than frames, or the
            file cannot be written.
    """
    if not SLOWEST <= rate <= FASTEST:
        raise InputError(f"a clip has {SLOWEST:g} to {FASTEST:g} frames a second, received {rate:g}.")
    kind = path.suffix.lower()
    if kind not in (".mp4", ".gif", ""):
        raise InputError(f"{path}: expected .mp4, .gif, or no ending for a folder of frames; received {kind}.")
    if not kind:
        check_frames(path)
        each = [{**about, "frame": number, "rate": rate} for number in range(len(pixels))]
        write_folder(path, lambda aside: save_folder(_Enlarged(pixels, scale or 1), aside, each))
        return
    larger = _Enlarged(pixels, scale or clip_scale(*pixels.shape[1:3]))
    comment = json.dumps(dict(about))
    if kind == ".mp4":
        load_av()
        write_aside(path, lambda aside: _write_mp4(larger, aside, rate, comment))
    else:
        write_aside(path, lambda aside: _write_gif(larger, aside, rate, comment))


def check_frames(folder: Path) -> None:
    """Nothing, if a folder is not there or holds nothing but frames, so that it may be replaced.

    Raises:
        InputError: it holds something else.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if other := next((name for name in names if not _FRAME.fullmatch(name)), ""):
        raise InputError(
            f"{folder} holds {other}, and frames of a clip take the place of a folder; choose another one."
        )


def save_clips(
    pixels: Tensor,
    folder: Path,
    rate: float,
    about: Sequence[Mapping[str, object]],
    names: Sequence[str] = (),
    ending: str = ".mp4",
) -> None:
    """Write a file or folder for each clip and `metadata.jsonl`, a line each with `file_name` first.

    Args:
        pixels: uint8 N×T×H×W×C.
        folder: made if need be; files of the same names in it are replaced.
        rate: frames a second, 0.1 to 240.
        about: N mappings, written into the clip and into its line.
        names: N names of files, without their ending; numbers if left out.
        ending: of the files; empty is a folder of frames for each.

    Raises:
        InputError: as of `save_clip`.
    """
    for i in range(0 if ending else len(pixels)):  # before the first of them takes the place of anything
        check_frames(folder / (names[i] if names else f"{i:05d}"))
    lines = []
    for i, (clip, words) in enumerate(zip(pixels, about, strict=True)):
        name = f"{names[i] if names else f'{i:05d}'}{ending}"
        save_clip(clip, folder / name, rate, words)
        lines.append(json.dumps({"file_name": name, **words}, ensure_ascii=False))
    write_text(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))


def clip_scale(height: int, width: int) -> int:
    """The largest whole factor that keeps a clip within 256 screen pixels."""
    return max(1, _SHOWN // max(height, width))


def read_about(path: Path) -> dict[str, Any]:
    """What `save_clip` wrote into an mp4 or gif beside its pixels; empty if there is nothing.

    Raises:
        InputError: PyAV is missing (mp4 alone).
    """
    if path.suffix.lower() == ".gif":
        with Image.open(path) as image:
            comment = image.info.get("comment", b"{}").decode()
    else:
        with load_av().open(str(path.absolute())) as container:
            comment = container.metadata.get("comment", "{}")
    return dict(json.loads(comment))


def clip_grid(pixels: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Clips side by side, row by row, as one clip.

    Args:
        pixels: uint8 N×T×H×W×C.
        columns: clips in a row.
        gap: pixels of grey between neighbours and around.
    """
    count, frames, height, width, channels = pixels.shape
    rows, columns = -(-count // columns), min(columns, count)
    shape = (frames, rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    sheet = torch.full(shape, _GREY, dtype=torch.uint8)
    for i, clip in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[:, top : top + height, left : left + width] = clip
    return sheet


def film_strip(pixels: Tensor, frames: int, scale: int = 1) -> Image.Image:
    """A row for each clip, of some of its frames: the first, the last, and evenly between.

    Args:
        pixels: uint8 N×T×H×W×C.
        frames: in a row, at most T are shown.
        scale: whole number of screen pixels for each pixel.
    """
    shown = min(frames, pixels.shape[1])
    moments = torch.linspace(0, pixels.shape[1] - 1, shown).round().long()
    return grid(pixels[:, moments].flatten(0, 1), shown, scale)


@final
@dataclass(frozen=True)
class _Enlarged:
    """Frames of a clip, each made larger when its turn comes.

    Args:
        pixels: uint8 T×H×W×C.
        scale: whole number of screen pixels for each pixel.
    """

    pixels: Tensor
    scale: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what they become."""
        return self.pixels.shape[1] * self.scale, self.pixels.shape[2] * self.scale

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Tensor]:
        for picture in self.pixels:
            yield picture.repeat_interleave(self.scale, 0).repeat_interleave(self.scale, 1)


def _write_mp4(pixels: _Enlarged, path: Path, rate: float, comment: str) -> None:
    av = load_av()
    height, width = (side + side % 2 for side in pixels.sides)
    # FFmpeg would take the beginning of a relative name such as a:b.mp4 for a protocol.
    with av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.options = {"crf": "14", "preset": "medium"}
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        coder = stream.codec_context
        coder.thread_count = 1
        coder.colorspace = coder.color_primaries = coder.color_trc = _SMPTE170M
        coder.color_range = _LIMITED
        colours = av.video.reformatter.VideoReformatter()
        for picture in pixels:
            odd = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
            whole = np.pad(picture.expand(-1, -1, 3).numpy(), odd, "edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(whole), format="rgb24")
            told = {"dst_colorspace": "ITU601", "dst_color_range": "MPEG", "threads": 1}
            container.mux(stream.encode(colours.reformat(frame, format="yuv420p", **told)))
        container.mux(stream.encode())


def _write_gif(pixels: _Enlarged, path: Path, rate: float, comment: str) -> None:
    """Each frame with a palette of its own; Pillow would join equal frames, and lose their number."""
    height, width = pixels.sides
    head = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x70, 0, 0)]
    head += [b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00", b"\x21\xfe", *_blocks(comment.encode()), b"\0"]
    shown = [round(100 * number / rate) for number in range(len(pixels) + 1)]
    lasts = [max(_LEAST, end - start) for start, end in pairwise(shown)]
    with path.open("wb") as file:
        file.writelines(head)
        for picture, last in zip(pixels, lasts, strict=True):
            image = _gif_image(_with_palette(to_image(picture)))
            file.writelines([b"\x21\xf9\x04", struct.pack("<BHBB", 4, last, 0, 0), image])
        file.write(b"\x3b")


def _blocks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 255):
        part = content[start : start + 255]
        yield bytes([len(part)]) + part


def _with_palette(image: Image.Image) -> Image.Image:
    """At most 256 colours: exactly if it has no more, else the nearest, dithered."""
    pixels = np.asarray(image.convert("RGB"))
    colours, numbers = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > _COLOURS:
        return image.convert("RGB").quantize(_COLOURS, Image.Quantize.MEDIANCUT)
    exact = Image.fromarray(numbers.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    exact.putpalette(colours.astype(np.uint8).tobytes())
    return exact


def _gif_image(image: Image.Image) -> bytes:
    """A picture with a palette as a block of a gif, compressed by Pillow."""
    file = io.BytesIO()
    image.save(file, format="GIF", interlace=0, optimize=False)
    content = file.getvalue()
    length = 3 * 2 ** ((content[10] & 7) + 1)
    palette, size = content[13 : 13 + length], content[10] & 7
    start = 13 + length
    while content[start] == 0x21:  # extensions
        start += 2
        while content[start]:
            start += content[start] + 1
        start += 1
    head, data = content[start : start + 9], content[start + 10 : -1]
    return head + bytes([0x80 | size]) + palette + data
