"""Adherence of a model: its pictures of prompts from the grammar of scenes, over guidance strengths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.data.images import ImageSet
from rectiflow.data.scenes import Scenes
from rectiflow.evaluation.adherence import sweep
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features
from rectiflow.evaluation.judge import judge
from rectiflow.evaluation.memory import some
from rectiflow.evaluation.metrics import frechet_distance
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request


def refuse_unread(pipeline: Pipeline, data: ImageSet) -> None:
    """Nothing, if the judge of scenes can read what a model makes.

    Raises:
        InputError: the data are no scenes, or the model takes no prompts.
    """
    if not isinstance(data.held_out, Scenes) or not pipeline.takes_prompts:
        raise InputError(
            "--adherence reads digits, colours and places out of pictures of prompts: it needs a model that takes "
            "prompts, trained on digit-scenes (rectiflow train scenes)."
        )


def prompted(pipeline: Pipeline, data: ImageSet, by: Features, config: EvaluateConfig) -> dict[str, Any]:
    """What `sweep` finds of the prompts of the first held-out scenes, half of them of combinations never trained.

    Args:
        pipeline: the model.
        data: digit-scenes.
        by: features of the Fréchet distance to held-out pictures.
        config: how many prompts, which weights, solver, steps and seed.
    """
    refuse_unread(pipeline, data)
    assert isinstance(data.held_out, Scenes)
    scenes = data.held_out.scenes(torch.arange(min(config.count, len(data.held_out))))
    held_out, _ = some(data.held_out, config.seed, config.count)
    real = by(held_out)

    def make(captions: Sequence[str], weight: float) -> Tensor:
        asked = Request(prompts=captions, guidance=weight, steps=config.steps, solver=config.solver, seed=config.seed)
        return pipeline.sample(asked).pixels

    found = sweep(make, scenes, config.weights, judge(), lambda pixels: frechet_distance(by(pixels), real))
    return {"prompts": len(scenes), **found}
