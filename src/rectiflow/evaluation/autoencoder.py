"""A report folder on an autoencoder: reconstructions of held-out pictures or clips, and what its own prior gives."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectiflow.autoencoders.frames import fold
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base.files import write_text
from rectiflow.base.randomness import Key
from rectiflow.base.ranks import first
from rectiflow.base.spread import to_first
from rectiflow.data.images import Frames, ImageSet
from rectiflow.data.pictures import grid, save_png, screen_scale, to_uint8
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features, features
from rectiflow.evaluation.memory import some
from rectiflow.evaluation.metrics import frechet_distance
from rectiflow.evaluation.page import autoencoder_page
from rectiflow.evaluation.reconstruction import psnr, reconstruction_scores, sheet
from rectiflow.models.autoencoder import prior_pictures

_CHUNK, _SHOWN, _FEWEST = 32, 8, 20


def evaluate_autoencoder(
    space: LatentSpace, data: ImageSet, config: EvaluateConfig, out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Measure an autoencoder on held-out pictures; write report.json, report.md and their pictures into `out`.

    Clips are judged by their frames, each a picture. Of a job's processes each one makes its share of the pictures, the
    first one writes the report, and the others are given an empty one.

    Args:
        space: the autoencoder, on any device; pictures are decoded from the means of their latents.
        data: its pictures or clips; where none are held out, those of training are judged, and the report says so.
        config: how many pictures, which features, the seed.
        out: the folder; made if need be.
        about: what the model is, for readers.

    Raises:
        InputError: pictures of other channels than the autoencoder's, or features that do not exist; one line.
    """
    space.check(data.shape)
    originals, _ = some(data.unseen, config.seed, config.count)
    count = len(originals)

    def of_prior(start: int, stop: int) -> Tensor:
        return prior_pictures(space, data.shape, count, config.seed, torch.arange(start, stop))

    made = to_first(lambda start, stop: torch.cat(list(_reconstructed(space, originals[start:stop]))), count)
    prior = to_first(of_prior, count)
    if not first():
        return {}
    out.mkdir(parents=True, exist_ok=True)
    notes = [] if len(data.held_out) else ["no pictures are held out: these are training pictures."]
    frames = fold(made), fold(originals)
    exact, most = int(psnr(*frames).isinf().sum()), len(frames[0])
    if 0 < exact < most:
        notes.append(f"{exact} of {most} reconstructions are exact, so that the mean PSNR is infinite.")
    scores = asdict(reconstruction_scores(*frames))
    result: dict[str, Any] = {
        "model": about,
        "count": count,
        "reconstruction": {n: round(value, 5) if math.isfinite(value) else None for n, value in scores.items()},
        "notes": notes,
    }
    if count >= _FEWEST:
        seen = data.train if made.dim() == 4 else Frames(data.train)
        by = features(config.features, seen, config.seed)
        result["frechet"] = _distances(by, frames[0], fold(prior), frames[1])
        by.save(out)
    else:
        notes.append(f"Fréchet distances need {_FEWEST} held-out pictures.")
    shown = slice(min(_SHOWN, count))
    _save(sheet(originals[shown], made[shown]), 3, out / "reconstructions.png")
    _save(fold(prior)[: 2 * _SHOWN], _SHOWN, out / "prior.png")
    write_text(out / "report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", autoencoder_page(result))
    return result


def _reconstructed(space: LatentSpace, x: Tensor) -> Iterator[Tensor]:
    with torch.no_grad():
        for part in torch.split(x, _CHUNK):
            yield space.decode(space.encode(part), (part.shape[-2], part.shape[-1])).float().cpu()


def _distances(by: Features, made: Tensor, prior: Tensor, originals: Tensor) -> dict[str, Any]:
    real = by(originals)
    return {
        "features": by.name,
        "reconstructions": round(frechet_distance(by(made.clamp(-1, 1)), real), 5),
        "prior": round(frechet_distance(by(prior.clamp(-1, 1)), real), 5),
        "halves": round(frechet_distance(*_halves(real)), 5),
    }


def _halves(real: Tensor) -> tuple[Tensor, Tensor]:
    order = Key(0, "halves").permutation(len(real))
    return real[order[: len(real) // 2]], real[order[len(real) // 2 :]]


def _save(pixels: Tensor, columns: int, path: Path) -> None:
    save_png(grid(to_uint8(pixels), columns, screen_scale(*pixels.shape[-2:])), path, {})
