"""Bits per dimension of held-out pictures, beside a mixture of Gaussians for each class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from torch import Tensor

from rectiflow.autoencoders.autoencoder import Identity
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, ImageSet, to_float
from rectiflow.data.paired import given_of
from rectiflow.evaluation.memory import device_of
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.bound import BoundConfig, variational_bound
from rectiflow.sampling.likelihood import LikelihoodConfig, log_likelihood

_CHUNK = 128
_MIXTURES = [
    (1, 3e-2),
    (1, 1e-2),
    (1, 3e-3),
    (1, 1e-3),
    (2, 1e-2),
    (2, 3e-3),
    (3, 1e-2),
    (4, 1e-2),
]  # components, least variance


@dataclass(frozen=True)
class LikelihoodRequest:
    """What to measure.

    Args:
        count: held-out pictures at most, ≥ 2; the first ones.
        ode: how the ODE's likelihood is taken.
        bound_draws: draws of the variational bound for each picture.
        top: greatest log-SNR of the bound.
        of_levels: whether the bound is of the levels themselves, for a model trained on them; its noise at `top` must
            be small beside the distance of two levels. If not it is of the pictures with noise added, as "ode" is.
        mixture: whether to fit the mixture of Gaussians as well.
        seed: of the dequantising noise and of all draws.
    """

    count: int = 1024
    ode: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig(steps=20, probes=4))
    bound_draws: int = 64
    top: float = 12.0
    of_levels: bool = False
    mixture: bool = True
    seed: int = 0


def refuse_unlikely(pipeline: Pipeline) -> None:
    """Nothing, if the pictures of a model have a likelihood.

    Raises:
        InputError: a model of latents or of one step, a source of unknown density, or a device without float64.
    """
    if not isinstance(pipeline.autoencoder, Identity):
        raise InputError(
            "no likelihood: this model is of latents, and its decoder was trained on differences of pictures, not on a "
            "probability p(x|l) that the bound of the chain needs; leave out --likelihood, or train in pixels."
        )
    if pipeline.flow.one_step:
        raise InputError("no likelihood: this model makes pictures in one step; leave out --likelihood.")
    if pipeline.flow_config.source == "pictures":
        pipeline.flow.source.log_density(torch.empty(0))
    if device_of(pipeline).type == "mps":
        raise InputError("a likelihood needs float64 numbers, which mps has not: use --device cpu.")


def held_out_likelihood(pipeline: Pipeline, data: ImageSet, request: LikelihoodRequest | None = None) -> dict[str, Any]:
    """Bits per dimension of the held-out pictures, given their classes, each with its standard error over pictures.

    "ode" is −log p of the pictures with uniform noise that fills the gaps between levels, an upper bound of the bits of
    the levels; "bound" the variational bound of the same pictures, or of the levels themselves; "mixture" as "ode", of
    a mixture of Gaussians for each class whose components are chosen by cross-validation on the training pictures.
    Nothing in a process that is given none of the bits by `pipeline.spread`.

    Raises:
        InputError: a model that `refuse_unlikely` refuses, another size or channels than the model's, or fewer than two
            held-out pictures.
    """
    request = request or LikelihoodRequest()
    count = min(request.count, len(data.held_out))
    refuse_unlikely(pipeline)
    if tuple(data.shape) != tuple(pipeline.shape):
        raise InputError(f"expected pictures of {pipeline.shape} as trained, received {tuple(data.shape)}.")
    if count < 2:
        raise InputError(f"expected at least 2 held-out pictures, received {count}; hold out more: data.held_out=0.05.")
    bits = held_out_bits(pipeline, data, request)
    if not len(bits):
        return {}
    how = {"solver": request.ode.solver, "steps": request.ode.steps, "probes": request.ode.probes}
    result: dict[str, Any] = {
        "count": count,
        "levels": data.levels,
        "dimensions": math.prod(data.shape),
        "seed": request.seed,
        "ode": _summary(bits[:, 0]) | how,
    }
    if bits.shape[1] > 1:
        how = {"draws": request.bound_draws, "top": request.top, "of_levels": request.of_levels}
        result["bound"] = _summary(bits[:, 1]) | how
    if request.mixture:
        result["mixture"] = _mixture(data, torch.arange(count), request.seed)
    return result


def held_out_bits(pipeline: Pipeline, data: ImageSet, request: LikelihoodRequest) -> Tensor:
    """Bits per dimension of each held-out picture by the ODE and, of a model with a Gaussian source, by the bound: N×1
    or N×2 float64, made as `pipeline.spread` says.
    """
    device = device_of(pipeline)

    def made(start: int, stop: int) -> Tensor:
        rows = []
        for part in torch.split(torch.arange(start, stop), _CHUNK):
            told = None
            if pipeline.conditioner.picture is not None:
                told = given_of(
                    pipeline.conditioner.picture, data.held_out, part, Key(request.seed, "evaluated picture")
                )
            given = pipeline.condition(data.held_out.labels[part], data.held_out.captions(part), told)
            noisy = dequantised(data.held_out, part, data.levels, request.seed).to(device)
            columns = [log_likelihood(pipeline.flow, noisy, given, request.ode, part).bits_per_dim(data.levels)]
            if pipeline.flow.source.is_gaussian:
                columns.append(_bound(pipeline, data, part, given, request))
            rows.append(torch.stack([column.double().cpu() for column in columns], dim=1))
        return torch.cat(rows)

    return pipeline.spread(made, min(request.count, len(data.held_out)))


def _bound(
    pipeline: Pipeline, data: ImageSet, part: Tensor, condition: Condition | None, request: LikelihoodRequest
) -> Tensor:
    """The variational bound in bits per dimension, of the levels or of the pictures with noise added."""
    levels = data.levels if request.of_levels else 0
    config = BoundConfig(draws=request.bound_draws, log_snr=(-14.0, request.top), levels=levels, seed=request.seed)
    plain = to_float(data.held_out.fetch(part))
    x = plain if levels else dequantised(data.held_out, part, data.levels, request.seed)
    bound = variational_bound(pipeline.flow, x.to(device_of(pipeline)), condition, config, part).bits_per_dim.cpu()
    return bound if levels else bound + math.log2((data.levels - 1) / 2)


def dequantised(images: Images, index: Tensor, levels: int, seed: int) -> Tensor:
    """Pictures with uniform noise as wide as the distance of two levels; the i-th one's depends on (seed, i) alone."""
    noise = Key(seed, "likelihood dequantise").uniform(index, images.shape).float() - 0.5
    return to_float(images.fetch(index)) + noise * 2 / (levels - 1)


def _summary(bits: Tensor) -> dict[str, Any]:
    return {
        "bits_per_dim": round(float(bits.mean()), 4),
        "standard_error": round(float(bits.std() / len(bits) ** 0.5), 4),
    }


def _mixture(data: ImageSet, index: Tensor, seed: int) -> dict[str, Any]:
    """The same of a mixture of Gaussians for each class (or for all, without classes)."""
    train = torch.arange(len(data.train))
    x = dequantised(data.train, train, data.levels, seed + 1).flatten(1).double().numpy()
    labels = data.train.labels.numpy()
    held_out = dequantised(data.held_out, index, data.levels, seed).flatten(1).double().numpy()
    theirs = data.held_out.labels[index].numpy()
    nats, chosen = np.zeros(len(held_out)), {}
    for label in np.unique(labels):
        mine = x[labels == label]
        components, floor = _best_mixture(mine, seed)
        chosen[str(label)] = [components, floor]
        fitted = GaussianMixture(components, reg_covar=floor, random_state=seed).fit(mine)
        if (theirs == label).any():
            nats[theirs == label] = fitted.score_samples(held_out[theirs == label])
    bits = -nats / (x.shape[1] * math.log(2)) + math.log2((data.levels - 1) / 2)
    return _summary(torch.from_numpy(bits)) | {"components_and_floor": chosen}


def _best_mixture(x: np.ndarray, seed: int) -> Sequence[Any]:
    """Components and least variance with the best cross-validated likelihood; folds are contiguous, as writers are."""
    scores = []
    for components, floor in _MIXTURES:
        folds = [
            GaussianMixture(components, reg_covar=floor, random_state=seed).fit(x[inside]).score(x[outside])
            for inside, outside in KFold(4).split(x)
            if len(inside) > components
        ]
        scores.append(float(np.mean(folds)) if folds else -math.inf)
    return _MIXTURES[int(np.argmax(scores))]
