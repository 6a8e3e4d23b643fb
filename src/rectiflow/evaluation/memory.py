"""Whether a model has learned its training pictures by heart: nearest neighbours, and the loss by noise level."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, to_float
from rectiflow.data.paired import given_of
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.evaluation.distances import distance_blocks, to_neighbour
from rectiflow.evaluation.features import Features
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.pipeline import Pipeline

_MOST = 10_000
_PAIRS = 12
_LEVELS = (0.05, 0.15, 0.25, 0.35, 0.5, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class Copies:
    """Distances of samples to their nearest training picture, beside those of training pictures to each other.

    Args:
        share: of samples nearer to a training picture than 99 % of training pictures are to their nearest other one;
            0.01 is what real pictures of the same law have.
        held_out_share: the same of held-out pictures, which cannot be copies.
        nearest: distance of each sample to its nearest training picture, N.
        pairs: int64 P×2, the closest (sample, training picture), closest first.
        threshold: the distance under which a sample is flagged.
    """

    share: float
    held_out_share: float
    nearest: Tensor
    pairs: Tensor
    threshold: float


def copies(made: Tensor, train: Tensor, held_out: Tensor) -> Copies:
    """Nearest training pictures of samples, by features N×d, M×d and K×d."""
    threshold = float(np.quantile(to_neighbour(train, 1), 0.01))
    nearest, which = _nearest(made, train)
    closest = nearest.argsort()[:_PAIRS]
    theirs, _ = _nearest(held_out, train)
    return Copies(
        share=float((nearest < threshold).double().mean()),
        held_out_share=float((theirs < threshold).double().mean()),
        nearest=nearest,
        pairs=torch.stack([closest, which[closest]], dim=1),
        threshold=threshold,
    )


def _nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each of N points to the nearest of the others, float64 N, and which that is, int64 N."""
    found = [torch.from_numpy(block).min(1) for _, block in distance_blocks(points, others)]
    if not found:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def sheet_of_pairs(found: Copies, made: Tensor, train: Tensor) -> Image.Image:
    """The closest pairs, samples above the training pictures that they are nearest to; pictures N×C×H×W."""
    rows = torch.cat([made[found.pairs[:, 0]], train[found.pairs[:, 1]]])
    return grid(to_uint8(rows), len(found.pairs), screen_scale(*rows.shape[-2:]))


def some(images: Images, seed: int = 0, most: int = _MOST) -> tuple[Tensor, Tensor]:
    """At most so many pictures, float N×C×H×W, chosen by the seed, and their labels."""
    index = chosen(images, seed, most)
    return to_float(images.fetch(index)), images.labels[index]


def chosen(images: Images, seed: int = 0, most: int = _MOST) -> Tensor:
    """Rows of at most so many pictures, chosen by the seed."""
    return Key(seed, "some pictures").permutation(len(images))[:most].sort().values


def device_of(pipeline: Pipeline) -> torch.device:
    """Where a model's flow lies; the CPU if it has no weights."""
    return next((weight.device for weight in pipeline.flow.parameters()), torch.device("cpu"))


def loss_by_noise(
    pipeline: Pipeline, train: Images, held_out: Images, count: int = 512, seed: int = 0
) -> dict[str, Any]:
    """Flow-matching loss of as many training and held-out pictures at nine noise levels, with the same draws.

    A model that has learned its training pictures by heart has a lower loss on them. "overfitted" is said if the
    held-out loss is more than a tenth above, and by more than three standard errors.
    """
    count, device = min(count, len(train), len(held_out)), device_of(pipeline)
    result: dict[str, Any] = {"noise_share": list(_LEVELS), "count": count}
    sums = {}
    for name, images in (("train", train), ("held_out", held_out)):
        pixels, labels = some(images, seed, count)
        given = None
        if pipeline.conditioner.picture is not None:
            given = given_of(
                pipeline.conditioner.picture, images, chosen(images, seed, count), Key(seed, "evaluated picture")
            )
        captions = images.captions(chosen(images, seed, count))
        x = pipeline.autoencoder.encode(pixels.to(device))
        condition = pipeline.condition(labels, captions, given)
        losses = []
        for level, noise_share in enumerate(_LEVELS):
            # β/(α+β) of the level: t itself on the rectified path, and as noisy on every other.
            log_snr = 2 * torch.log(torch.tensor((1 - noise_share) / noise_share, dtype=torch.float64))
            t = pipeline.flow.schedule.time_of(log_snr).expand(count)
            z = pipeline.flow.source.sample(Key(seed, "noise level", level), torch.arange(count), x.shape[1:])
            with torch.no_grad():
                losses.append(flow_matching_loss(pipeline.flow, x, t, z.to(device), condition).cpu())
        result[name] = [round(float(loss.mean()), 5) for loss in losses]
        sums[name] = torch.stack(losses).mean(0).double()
    gap = sums["held_out"].mean() - sums["train"].mean()
    error = ((sums["held_out"].var() + sums["train"].var()) / count).sqrt()
    result["excess"] = round(float(gap / sums["train"].mean()), 4)
    result["overfitted"] = bool(gap > 0.1 * sums["train"].mean()) and bool(gap > 3 * error)
    return result


def in_features(features: Features, made: Tensor, train: Tensor, held_out: Tensor) -> Copies:
    """`copies` of pictures N×C×H×W by their features."""
    return copies(features(made), features(train), features(held_out))
