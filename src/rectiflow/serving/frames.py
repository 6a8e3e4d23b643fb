"""Frames of clips on their way through a server: into levels of grey, of a preview, and out of files that are sent."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.continuation import usual_overlap
from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, decode
from rectiflow.data.given import read_film
from rectiflow.data.images import to_float
from rectiflow.data.pictures import to_uint8
from rectiflow.pipeline import Pipeline
from rectiflow.serving.limits import Limits

STRIDE = 4
LONGEST = 1000  # frames of a film that has gone on: it is held in memory
_PLAIN, _CENTRE = DataConfig(set="folder"), (0.5, 0.5, 1.0)


def makes_clips(pipeline: Pipeline) -> bool:
    """Whether a model makes clips, and pictures only as clips of one frame."""
    return len(pipeline.shape) == 4


def frames_trained(pipeline: Pipeline) -> int:
    """T of the clips that a model was trained on; 1 for pictures."""
    return pipeline.shape[1] if makes_clips(pipeline) else 1


def most_frames(pipeline: Pipeline, limits: Limits) -> int:
    """Of a clip that is made at once, 1+4k within the limit; 1 for a model of pictures."""
    trained = frames_trained(pipeline)
    return 1 + (limits.frames - 1) // STRIDE * STRIDE if limits.frames and trained > 1 else trained


def longest_clip(pipeline: Pipeline, limits: Limits) -> int:
    """Frames that a request may ask for: those of as many windows as are allowed, for a model that is given frames."""
    window = most_frames(pipeline, limits)
    if window == 1 or pipeline.conditioner.frames is None:
        return window
    return window + (limits.windows - 1) * (window - usual_overlap(window))


def nearest_frames(frames: float) -> int:
    """The number 1+4k of frames that is nearest, k ≥ 1."""
    return 1 + STRIDE * max(1, round((frames - 1) / STRIDE))


def levels(x: Tensor) -> Tensor:
    """Pictures in [−1, 1], B×C×H×W or B×C×1×H×W, to uint8 B×H×W×C; clips B×C×T×H×W to uint8 B×T×H×W×C."""
    pixels = to_uint8(x)
    return pixels[:, 0] if x.dim() == 5 and x.shape[2] == 1 else pixels


def up_to_middle(latents: Tensor) -> Tensor:
    """Latents of clips, B×C×T×H×W, up to their middle: the frames until there do not depend on what comes after."""
    return latents[:, :, : latents.shape[2] // 2 + 1] if latents.dim() == 5 else latents


def last_frame(pixels: Tensor) -> Tensor:
    """The last frames of clips B×T×H×W×C, as pictures B×H×W×C; pictures as they are."""
    return pixels[:, -1] if pixels.dim() == 5 else pixels


def middle_frame(pixels: Tensor) -> Tensor:
    """The middle frames of clips B×T×H×W×C, as pictures B×H×W×C; pictures as they are."""
    return pixels[:, pixels.shape[1] // 2] if pixels.dim() == 5 else pixels


def read_frames(
    content: bytes, channels: int, size: tuple[int, int], most: int, last: int | None = None
) -> tuple[Tensor, int, float]:
    """Of a film file the last frames, uint8 1×t×H×W×C, the number of all, and how many in a second; see `read_film`."""
    with TemporaryDirectory(prefix="rectiflow-") as folder:
        path = Path(folder, "film.mp4")
        path.write_bytes(content)
        ending = read_film(path, channels, size, most, last)
    return ending.frames[None], ending.length, ending.rate


def read_frame(content: bytes, channels: int, size: tuple[int, int]) -> Tensor:
    """A picture file as a frame of clips, 1×C×1×H×W in [−1, 1]: resized to cover them, cropped to its centre.

    Raises:
        InputError: it is no picture; one line.
    """
    try:
        pixels = decode(content, _PLAIN, size, channels == 1, _CENTRE)
    except Unusable as problem:
        raise InputError(f"{problem}; expected a picture, such as a PNG or JPEG file.") from problem
    return to_float(torch.tensor(pixels))[None, :, None]
