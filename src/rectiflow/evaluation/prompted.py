"""Adherence of a model: its pictures or clips of prompts from their set's grammar, over guidance strengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.images import ImageSet
from rectiflow.data.moving import MovingDigits
from rectiflow.data.scenes import Scenes
from rectiflow.evaluation.adherence import Asked, sweep
from rectiflow.evaluation.clip_adherence import clip_sweep
from rectiflow.evaluation.clip_judge import clip_judge
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features
from rectiflow.evaluation.judge import judge
from rectiflow.evaluation.memory import some
from rectiflow.evaluation.metrics import frechet_distance
from rectiflow.evaluation.one_frame import as_pictures, one_frame
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request


def refuse_unread(pipeline: Pipeline, data: ImageSet) -> None:
    """Nothing, if a judge can read what a model makes.

    Raises:
        InputError: the data are neither scenes nor clips of digits, or the model takes no prompts.
    """
    if not isinstance(data.held_out, Scenes | MovingDigits) or not pipeline.takes_prompts:
        raise InputError(
            "--adherence reads digits, colours and places or movements out of what is made of prompts: it needs a "
            "model that takes prompts, trained on digit-scenes (rectiflow train scenes) or digit-clips "
            "(rectiflow train clips)."
        )


def prompts_of(data: ImageSet, config: EvaluateConfig) -> Iterator[Request]:
    """What `prompted` asks of a model, in its order."""
    assert isinstance(data.held_out, Scenes | MovingDigits)
    index = torch.arange(min(config.count, len(data.held_out)))
    asked: Sequence[Asked]
    asked = data.held_out.scenes(index) if isinstance(data.held_out, Scenes) else data.held_out.movements(index)
    for weight in config.weights:
        yield _request([each.caption for each in asked], weight, config)


def _request(captions: Sequence[str], weight: float, config: EvaluateConfig) -> Request:
    return Request(prompts=captions, guidance=weight, steps=config.steps, solver=config.solver, seed=config.seed)


def prompted(pipeline: Pipeline, data: ImageSet, by: Features, config: EvaluateConfig) -> dict[str, Any]:
    """What `sweep` finds of the prompts of the first held-out scenes, or `clip_sweep` of those of the first clips; half
    of them of combinations never trained.

    Args:
        pipeline: the model.
        data: digit-scenes or digit-clips.
        by: features of the Fréchet distance to held-out pictures; of clips one frame of each counts.
        config: how many prompts, which weights, solver, steps and seed.
    """
    refuse_unread(pipeline, data)
    index = torch.arange(min(config.count, len(data.held_out)))
    held_out, _ = some(as_pictures(data).held_out, config.seed, config.count)
    real = by(held_out)

    def make(captions: Sequence[str], weight: float) -> Tensor:
        return pipeline.sample(_request(captions, weight, config)).pixels

    def distance(pixels: Tensor) -> float:
        return frechet_distance(by(one_frame(pixels)), real)

    if isinstance(data.held_out, MovingDigits):
        movements = data.held_out.movements(index)
        found = clip_sweep(make, movements, config.weights, clip_judge(), distance, data.shape[1])
    else:
        assert isinstance(data.held_out, Scenes)
        found = sweep(make, data.held_out.scenes(index), config.weights, judge(), distance)
    return {"prompts": len(index), **found}
