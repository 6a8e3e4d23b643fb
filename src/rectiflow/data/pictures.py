"""Pictures out of tensors and into files: single, as a grid, or as the field's .npz."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rectiflow.base.files import write_aside, write_text

_PIECE = 2**22  # values that are converted at once


def to_uint8(x: Tensor) -> Tensor:
    """Pictures in [−1, 1], B×C×H×W, to uint8 B×H×W×C, and clips B×C×T×H×W to B×T×H×W×C, on the CPU; what lies outside
    is clipped. Beside the two little is held.
    """
    values = x.movedim(1, -1)
    levels = torch.empty(values.shape, dtype=torch.uint8)
    few = max(1, _PIECE // max(1, x.shape[1] * x.shape[-2] * x.shape[-1]))
    wholes = zip(values, levels, strict=True) if x.dim() == 5 else [(values, levels)]
    for whole, made in wholes:
        for part, there in zip(whole.split(few), made.split(few), strict=True):
            there.copy_(part.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8))
    return levels


def to_image(pixels: Tensor) -> Image.Image:
    """One picture, uint8 H×W×C with C = 1 or 3, as a PIL image."""
    return Image.fromarray(pixels.squeeze(-1).numpy() if pixels.shape[-1] == 1 else pixels.numpy())


def grid(pixels: Tensor, columns: int, scale: int = 1, gap: int = 1) -> Image.Image:
    """Pictures side by side, row by row.

    Args:
        pixels: uint8 N×H×W×C.
        columns: pictures in a row.
        scale: whole number of screen pixels for each pixel.
        gap: pixels of grey between neighbours, before scaling.
    """
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 96, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = picture
    image = to_image(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def screen_scale(height: int, width: int) -> int:
    """The whole factor that brings a small picture to about 32 screen pixels."""
    return max(1, round(32 / max(height, width)))


def save_png(image: Image.Image, path: Path, about: Mapping[str, object]) -> None:
    """Write a PNG that carries `about` in its text chunks.

    Raises:
        InputError: the file cannot be written.
    """
    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    write_aside(path, lambda aside: image.save(aside, format="PNG", pnginfo=text))


def save_npz(pixels: Tensor, labels: Tensor, path: Path) -> None:
    """Write arr_0 (uint8 N×H×W×C) and arr_1 (labels), the field's evaluation convention."""

    def fill(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, pixels.numpy(), labels.numpy())

    write_aside(path, fill)


def save_folder(
    pixels: Iterable[Tensor], folder: Path, about: Sequence[Mapping[str, object]], names: Sequence[str] = ()
) -> None:
    """Write one PNG for each picture and `metadata.jsonl`, a line each with `file_name` first.

    Args:
        pixels: N times uint8 H×W×C.
        folder: made if need be; files of the same names in it are replaced.
        about: N mappings, written into the picture and into its line.
        names: N names of files, without their ending; numbers if left out.
    """
    lines = []
    for i, (picture, words) in enumerate(zip(pixels, about, strict=True)):
        name = f"{names[i] if names else f'{i:05d}'}.png"
        save_png(to_image(picture), folder / name, words)
        lines.append(json.dumps({"file_name": name, **words}, ensure_ascii=False))
    write_text(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))
