"""Pictures as they leave a server: PNG files that carry their settings."""

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rectiflow.data.pictures import to_image
from rectiflow.request import Request
from rectiflow.serving.served import Served


def settings(served: Served, request: Request, rate: float | None = None) -> dict[str, Any]:
    """What pictures were made with, or clips of `rate` frames a second, under the names that a client asks by."""
    one_step = served.pipeline.flow.one_step
    height, width = request.size or served.pipeline.size
    return {
        "prompt": next(iter([*request.prompts, *map(str, request.classes)]), ""),
        "negative_prompt": request.negative,
        "seed": request.seed,
        "steps": 1 if one_step else request.steps,
        "solver": "euler" if one_step else request.solver,
        "guidance": request.guidance,
        "size": f"{width}x{height}",
        "n": request.count,
        **({} if request.frames is None else {"frames": request.frames}),
        **({} if rate is None else {"rate": rate}),
    }


def about(served: Served, request: Request, index: int, rate: float | None = None) -> dict[str, Any]:
    """What the index-th picture or clip of a request carries, as `rectiflow sample` has it."""
    mine = settings(served, request, rate)
    named = {"class": mine["prompt"]} if request.classes else {}
    return {"model": served.name, **served.pipeline.training, **named, "index": index, **mine}


def png(pixels: Tensor, words: Mapping[str, Any]) -> bytes:
    """One picture, uint8 H×W×C, as a PNG file with `words` in its text chunks."""
    text = PngInfo()
    for name, value in words.items():
        text.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    file = io.BytesIO()
    to_image(pixels).save(file, format="PNG", pnginfo=text)
    return file.getvalue()
