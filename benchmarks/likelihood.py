"""Bits per dimension of held-out digits: python benchmarks/likelihood.py RUN

RUN is trained on dequantised levels: rectiflow train digits --run RUN --set data.dequantise=1. The held-out digits are
of whole writers. With it, how well the likelihood of a picture tells digits from other pictures.
"""

import sys

import torch
from sklearn.metrics import roc_auc_score

import common
from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digits
from rectiflow.data.images import ImageSet, InMemory, to_float
from rectiflow.evaluation.likelihood import LikelihoodRequest, dequantised, held_out_likelihood
from rectiflow.pipeline import Pipeline
from rectiflow.sampling.likelihood import LikelihoodConfig, log_likelihood

OTHERS = 150


def others(data: ImageSet) -> dict[str, InMemory]:
    """Pictures that are no digits, or other digits than their label says."""
    index = torch.arange(OTHERS)
    pixels, labels = to_float(data.held_out.fetch(index)), data.held_out.labels[:OTHERS]
    order = Key(0, "shuffled pixels").permutation(64)
    return {
        "upside down": InMemory(pixels.flip(-2), labels),
        "mirrored": InMemory(pixels.flip(-1), labels),
        "pixels shuffled": InMemory(pixels.flatten(2)[..., order].reshape(pixels.shape), labels),
        "negative": InMemory(-pixels, labels),
        "another label": InMemory(pixels, (labels + 1 + torch.arange(OTHERS) % 9) % 10),
    }


def main(run: str) -> None:
    pipeline, data = Pipeline.load(run), digits()
    result: dict[str, object] = {"held_out": held_out_likelihood(pipeline, data)}
    print(result["held_out"], flush=True)
    finer = LikelihoodRequest(count=OTHERS, ode=LikelihoodConfig(steps=60, probes=4), mixture=False)
    result["finer"] = held_out_likelihood(pipeline, data, finer)
    print("three times the steps:", result["finer"], flush=True)
    config, index = LikelihoodConfig(steps=20, probes=2), torch.arange(OTHERS)

    def nats(images: InMemory) -> torch.Tensor:
        x = dequantised(images, index, data.levels, 0)
        return log_likelihood(pipeline.flow, x, Condition(images.labels[:OTHERS]), config).nats

    true = nats(InMemory(to_float(data.held_out.fetch(index)), data.held_out.labels[:OTHERS]))
    areas = {}
    for name, images in others(data).items():
        found = torch.cat([true, nats(images)])
        areas[name] = round(float(roc_auc_score([1] * OTHERS + [0] * OTHERS, found.numpy())), 4)
        print(f"digits against {name}: area under the curve {areas[name]}", flush=True)
    result["area_under_curve"] = areas
    common.write("likelihood", result)


if __name__ == "__main__":
    main(sys.argv[1])
