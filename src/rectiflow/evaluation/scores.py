"""The scores of one set of samples, and the drawing of samples with what it cost."""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, ImageSet
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features
from rectiflow.evaluation.memory import chosen, some
from rectiflow.evaluation.metrics import Interval, bootstrap, frechet_distance, kernel_distance, manifold, told_apart
from rectiflow.evaluation.restoration import requests, restored, truth
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request, Samples


def requests_of(pipeline: Pipeline, images: Images, config: EvaluateConfig) -> list[Request]:
    """What `drawn` asks of a model, in its order."""
    if pipeline.conditioner.picture is not None:
        asked = truth(pipeline, images, config.seed, config.count)
        return [request for _, request in requests(pipeline, asked, config)]
    prompts = images.captions(chosen(images, config.seed, config.count)) if pipeline.takes_prompts else []
    classes = max(1, len(pipeline.class_names), len(prompts))
    return [
        Request(
            prompts=prompts,
            count=-(-config.count // classes),
            steps=config.steps,
            solver=config.solver,
            guidance=config.guidance,
            seed=config.seed,
        )
    ]


def drawn(pipeline: Pipeline, images: Images, config: EvaluateConfig) -> tuple[Samples, dict[str, Any]]:
    """Samples of every class, as evenly as the count allows, or of the captions of `images`, and what they cost.

    A model that is given a picture is given those of `images`.
    """
    if pipeline.conditioner.picture is not None:
        return _drawn_of_given(pipeline, images, config)
    (request,) = requests_of(pipeline, images, config)
    *_, last = pipeline.states(request, 0, 1)
    start = time.perf_counter()
    samples = pipeline.sample(request)
    seconds = time.perf_counter() - start
    # Guidance evaluates a second branch with each evaluation.
    evaluations = last.evaluations * (2 if config.guidance else 1)
    # One too many of some classes: those to leave out are drawn, so that no class is last.
    rows = Key(config.seed, "evaluated").permutation(len(samples.labels))[: config.count].sort().values
    told = tuple(samples.prompts[row] for row in rows.tolist()) if samples.prompts else ()
    kept = Samples(samples.pixels[rows], samples.labels[rows], told)
    cost = {"evaluations": evaluations, "seconds_per_100": round(100 * seconds / len(samples.labels), 3)}
    return kept, cost


def _drawn_of_given(pipeline: Pipeline, images: Images, config: EvaluateConfig) -> tuple[Samples, dict[str, Any]]:
    asked = truth(pipeline, images, config.seed, config.count)
    *_, last = pipeline.states(next(requests(pipeline, asked, config))[1], 0, 1)
    start = time.perf_counter()
    pixels = restored(pipeline, asked, config)[:, 0]
    seconds = time.perf_counter() - start
    cost = {
        "evaluations": last.evaluations * (2 if config.guidance else 1),
        "seconds_per_100": round(100 * seconds / len(pixels), 3),
    }
    labels = asked.labels if pipeline.class_names else torch.full_like(asked.labels, -1)
    return Samples(pixels, labels, asked.captions if pipeline.takes_prompts else ()), cost


def scores(features: Features, made: Tensor, real: Tensor, seed: int) -> dict[str, Any]:
    """Every score of samples beside real pictures, both N×C×H×W, equally many where there are as many.

    With "notes": what a reader must know of them.
    """
    count = min(len(made), len(real))
    made, real = features(_even(made, count, seed)), features(_even(real, count, seed))
    notes = []
    if count <= made.shape[1]:
        notes.append(
            f"{count} samples of {made.shape[1]} features: the covariances lack full rank, and the Fréchet distance is "
            "of little worth; draw more samples, or use features=encoder."
        )
    covered = manifold(made, real)
    return {
        "features": features.name,
        "dimension": made.shape[1],
        "count": count,
        "frechet": _rounded(bootstrap(frechet_distance, made, real, seed=seed)),
        "kernel": _rounded(bootstrap(kernel_distance, made, real, seed=seed)),
        **{name: round(value, 4) for name, value in asdict(covered).items()},
        "told_apart": _rounded(told_apart(made, real, seed)),
        "notes": notes,
    }


def real_scores(features: Features, data: ImageSet, seed: int, count: int) -> dict[str, Any]:
    """The same of training pictures beside the held-out ones: what a perfect model would be given."""
    held_out, _ = some(data.held_out, seed, count)
    train, _ = some(data.train, seed + 1, len(held_out))
    return scores(features, train, held_out, seed)


def _even(pixels: Tensor, count: int, seed: int) -> Tensor:
    """`count` of them, in their order."""
    return pixels[Key(seed, "as many").permutation(len(pixels))[:count].sort().values]


def _rounded(found: Interval) -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(found).items()}
