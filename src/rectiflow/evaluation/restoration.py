"""How near a model that is given a picture comes to the truth, on held-out pictures, beside what needs no model.

Samples of p(x|y) are not its mean: with K of them the mean square error of their mean is (1 + 1/K)/2 of that of one, if
the model is exact. So a single sample is judged by how it looks, and the mean of several by how far it is off.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rectiflow.autoencoders.structure import ssim
from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, to_float
from rectiflow.data.paired import given_of
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.memory import chosen
from rectiflow.evaluation.reconstruction import psnr
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request

SAMPLES = 8
_MOST, _SHOWN, _SHOWN_SAMPLES = 200, 8, 4
_EXACT = 250.0  # dB


@dataclass(frozen=True)
class Truth:
    """Pictures, and what is given of them.

    Args:
        x: N×C×H×W in [−1, 1].
        y: what is given; see `Request.picture`.
        labels: int64 N.
        captions: N of them; empty where there is none.
    """

    x: Tensor
    y: Tensor
    labels: Tensor
    captions: tuple[str, ...]


def truth(pipeline: Pipeline, images: Images, seed: int, count: int) -> Truth:
    """At most so many pictures, chosen by the seed, and what is given of them, drawn by it."""
    assert pipeline.conditioner.picture is not None
    rows = chosen(images, seed, count)
    y = given_of(pipeline.conditioner.picture, images, rows, Key(seed, "evaluated picture"))
    return Truth(to_float(images.fetch(rows)), y, images.labels[rows], tuple(images.captions(rows)))


def requests(
    pipeline: Pipeline, truth: Truth, config: EvaluateConfig, samples: int = 1
) -> Iterator[tuple[Tensor, Request]]:
    """What to ask for so many samples of each picture, by its own label or caption: rows of the truth, and a request
    for their samples, those of a picture after one another.
    """
    labels = truth.labels.tolist() if pipeline.class_names else [-1] * len(truth.x)
    captions = truth.captions if pipeline.takes_prompts else ("",) * len(truth.x)
    kinds = list(zip(labels, captions, strict=True))
    for number, (label, caption) in enumerate(sorted(set(kinds))):
        rows = torch.tensor([i for i, kind in enumerate(kinds) if kind == (label, caption)])
        yield (
            rows,
            Request(
                classes=() if label < 0 else (pipeline.class_names[label],),
                prompts=(caption,) if pipeline.takes_prompts else (),
                count=samples * len(rows),
                picture=truth.y[rows].repeat_interleave(samples, 0),
                steps=config.steps,
                solver=config.solver,
                guidance=config.guidance,
                seed=config.seed + number,  # or pictures of two classes would share their noise
            ),
        )


def requests_of_restoration(pipeline: Pipeline, images: Images, config: EvaluateConfig) -> list[Request]:
    """What `restoration` asks of a model, in its order."""
    asked = truth(pipeline, images, config.seed, min(config.count, _MOST))
    return [request for _, request in requests(pipeline, asked, config, SAMPLES)]


def restored(pipeline: Pipeline, truth: Truth, config: EvaluateConfig, samples: int = 1) -> Tensor:
    """So many samples of each picture, N×samples×C×H×W."""
    made = torch.empty(len(truth.x), samples, *truth.x.shape[1:])
    for rows, request in requests(pipeline, truth, config, samples):
        made[rows] = pipeline.sample(request).pixels.unflatten(0, (len(rows), samples))
    return made


def restoration(pipeline: Pipeline, images: Images, config: EvaluateConfig) -> tuple[dict[str, Any], Image.Image]:
    """PSNR and SSIM of one sample, of the mean of several and of what needs no model, and whether samples agree with
    what was given; and a sheet: a row of what was given, its best plain reading, samples, their mean, and the truth.

    Args:
        pipeline: a model that is given a picture.
        images: held-out pictures.
        config: how many, at most 200; solver, steps, guidance and seed.
    """
    asked = truth(pipeline, images, config.seed, min(config.count, _MOST))
    made = restored(pipeline, asked, config, SAMPLES).clamp(-1, 1)
    plain = pipeline.conditioner.degradation.plain(asked.y, pipeline.shape[0])
    shown = {"one sample": made[:, 0], f"mean of {SAMPLES} samples": made.mean(1), **plain}
    result: dict[str, Any] = {
        "count": len(asked.x),
        "samples": SAMPLES,
        "scores": {name: _scores(x, asked.x) for name, x in shown.items()},
    }
    again = pipeline.conditioner.degradation.again(made[:, 0], asked.y)
    if again is not None:
        result["consistency"] = round(float((again - asked.y).square().mean().sqrt()), 5)
    told = pipeline.conditioner.degradation.told(asked.y)[:, :-1].expand_as(asked.x)
    samples = made[:, :_SHOWN_SAMPLES].unbind(1)
    columns = [told, list(plain.values())[-1], *samples, made.mean(1), asked.x]
    pixels = torch.stack([column[:_SHOWN] for column in columns], dim=1).flatten(0, 1)
    return result, grid(to_uint8(pixels), len(columns), screen_scale(*pixels.shape[-2:]))


def _scores(made: Tensor, real: Tensor) -> dict[str, float | None]:
    """PSNR of the mean square error of all pictures, which exact ones do not make infinite (None if all are), and the
    mean SSIM.
    """
    ratio = -10 * math.log10(max(float((10 ** (-psnr(made, real) / 10)).mean()), 1e-30))
    return {"psnr": round(ratio, 3) if ratio < _EXACT else None, "ssim": round(float(ssim(made, real).mean()), 4)}
