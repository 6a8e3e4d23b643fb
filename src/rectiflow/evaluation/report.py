"""A report folder: figures as JSON, a page to read, and the pictures that belong to it."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_text
from rectiflow.base.ranks import first
from rectiflow.base.spread import to_first
from rectiflow.data.images import ImageSet
from rectiflow.data.pictures import grid, save_png, screen_scale, to_uint8
from rectiflow.evaluation.adherence_plot import plot_adherence
from rectiflow.evaluation.clip_score import clip_scores
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import features
from rectiflow.evaluation.likelihood import LikelihoodRequest, held_out_bits, held_out_likelihood, refuse_unlikely
from rectiflow.evaluation.memory import in_features, loss_by_noise, sheet_of_pairs, some
from rectiflow.evaluation.one_frame import as_pictures, one_frame
from rectiflow.evaluation.page import page
from rectiflow.evaluation.plots import plot_loss, plot_nearest
from rectiflow.evaluation.prompted import prompted, prompts_of, refuse_unread
from rectiflow.evaluation.restoration import requests_of_restoration, restoration
from rectiflow.evaluation.scores import drawn, real_scores, requests_of, scores
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.solvers import solver


def evaluate(
    pipeline: Pipeline, data: ImageSet, config: EvaluateConfig, out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Measure a model and write report.json, report.md, their pictures, and the encoder if one was trained, into `out`.

    Scores of pictures and copies are, of a model of clips, those of one frame of each clip. All processes of a job have
    to ask: each makes its share of the pictures and likelihoods, the first one writes the report, and the others are
    given an empty one.

    Args:
        pipeline: the model, on any device.
        data: its pictures; the held-out ones are the reference, the training ones tell copies.
        config: what to measure.
        out: the folder; made if need be.
        about: what the model is, for readers.

    Raises:
        InputError: too few held-out pictures, pictures of another shape than the model's, or a likelihood asked of a
            model that has none.
    """
    if tuple(data.shape) != tuple(pipeline.shape):
        raise InputError(f"the model makes pictures of {tuple(pipeline.shape)}; the data have {tuple(data.shape)}.")
    if len(data.held_out) < 20:
        raise InputError(
            f"an evaluation needs at least 20 held-out pictures, there are {len(data.held_out)}; "
            "train with a greater share held out: data.held_out."
        )
    # What cannot be done is told before anything is trained.
    solver(config.solver)
    if config.likelihood:
        refuse_unlikely(pipeline)
    if config.adherence:
        refuse_unread(pipeline, data)
    pipeline = replace(pipeline, spread=to_first)
    if not first():
        _take_part(pipeline, data, config)
        return {}
    out.mkdir(parents=True, exist_ok=True)
    stills = as_pictures(data)
    by = features(config.features, stills.train, config.seed)
    samples, cost = drawn(pipeline, data.held_out, config)
    pictures = replace(samples, pixels=one_frame(samples.pixels))
    held_out, _ = some(stills.held_out, config.seed, config.count)
    train, _ = some(stills.train, config.seed)
    near = in_features(by, pictures.pixels, train, held_out)
    result: dict[str, Any] = {
        "model": about,
        "settings": config.model_dump(),
        "cost": cost,
        "frames": data.shape[1] if len(data.shape) == 4 else 1,
        "scores": scores(by, pictures.pixels, held_out, config.seed),
        "real": real_scores(by, stills, config.seed, config.count),
        "copies": {"share": near.share, "held_out_share": near.held_out_share, "threshold": near.threshold},
    }
    if not pipeline.flow.one_step:
        result["loss_by_noise"] = loss_by_noise(pipeline, data.train, data.held_out, seed=config.seed)
        plot_loss(result["loss_by_noise"], out / "loss.png")
    if config.likelihood:
        result["likelihood"] = held_out_likelihood(pipeline, data, LikelihoodRequest(seed=config.seed))
    if (told := clip_scores(by, pictures, stills, config.seed)) is not None:
        result["clip_score"] = told
    if config.adherence:
        result["adherence"] = prompted(pipeline, data, by, config)
        plot_adherence(result["adherence"], out / "adherence.png")
        write_text(out / "adherence.json", json.dumps(result["adherence"], indent=1) + "\n")
    if pipeline.conditioner.picture is not None:
        result["restoration"], sheet = restoration(pipeline, data.held_out, config)
        save_png(sheet, out / "restoration.png", {})
    by.save(out)
    _save(samples.pixels, samples.labels, out / "samples.png")
    save_png(sheet_of_pairs(near, pictures.pixels, train), out / "copies.png", {})
    plot_nearest(near.nearest, in_features(by, held_out, train, held_out).nearest, near.threshold, out / "nearest.png")
    write_text(out / "report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", page(result))
    return result


def _take_part(pipeline: Pipeline, data: ImageSet, config: EvaluateConfig) -> None:
    """What a process other than the first does in `evaluate`, in the order of that."""
    asked = requests_of(pipeline, data.held_out, config)
    for request in asked:
        pipeline.sample(request)
    if config.likelihood:
        held_out_bits(pipeline, data, LikelihoodRequest(seed=config.seed))
    more = prompts_of(data, config) if config.adherence else ()
    given = pipeline.conditioner.picture is not None
    for request in chain(more, requests_of_restoration(pipeline, data.held_out, config) if given else ()):
        pipeline.sample(request)


def _save(pixels: Tensor, labels: Tensor, path: Path, columns: int = 10) -> None:
    """The first samples of each class, `columns` a row, or the first clips, the frames of each in a row."""
    if pixels.dim() == 5:
        columns, sheet = pixels.shape[2], pixels[:columns].transpose(1, 2).flatten(0, 1)
    else:
        rows = [pixels[labels == label][:columns] for label in labels.unique()[:10]]
        sheet = torch.cat([row for row in rows if len(row) == columns] or [pixels[:columns]])
    save_png(grid(to_uint8(sheet), columns, screen_scale(*sheet.shape[-2:])), path, {})
