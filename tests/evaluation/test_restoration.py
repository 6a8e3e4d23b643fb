"""Restoration by an exact model of Gaussian pictures: sampled, each error has a closed form."""

import math

import pytest
import torch
from torch import nn

from rectiflow.base.randomness import Key
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.images import InMemory
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.restoration import SAMPLES, restoration, restored, truth
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.config import DiTConfig
from rectiflow.pipeline import Pipeline

STD, SIDE, COUNT = 0.2, 16, 120
LOW = PictureConfig(kind="low", factor=2, dropout=0.0)
CONFIG = EvaluateConfig(count=COUNT, steps=64, solver="midpoint")


class Posterior(nn.Module):
    """The velocity of x ~ N(0, s²I) given its averages y over squares of 2×2.

    With P the projection on pictures that are constant on squares, x|y is N(A⁺y, s²(I − P)): on the range of P a point,
    with v = −m + (x_t − (1−t)m)/t; on the rest a Gaussian, with v = x_t (t − (1−t)s²)/((1−t)²s² + t²).
    """

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, t, condition=None):
        way, t = degradation(LOW), t.reshape(-1, 1, 1, 1)
        mean = condition.image[:, :-1]
        part = way.told(way.again(x_t, x_t))[:, :-1]
        point = -mean + (part - (1 - t) * mean) / t.clamp_min(1e-6)
        spread = (1 - t) ** 2 * STD**2 + t**2
        return point + (x_t - part) * (t - (1 - t) * STD**2) / spread


@pytest.fixture(scope="module")
def exact():
    network = DiTConfig(channels=1, classes=0, picture=1)
    flow = Flow(Posterior()).requires_grad_(False)
    return Pipeline(flow, FlowConfig(), network, (1, SIDE, SIDE), Conditioner(picture=LOW))


@pytest.fixture(scope="module")
def images():
    pixels = STD * Key(3, "pictures").normal(torch.arange(COUNT), (1, SIDE, SIDE))
    return InMemory(pixels, torch.full((COUNT,), -1))


def decibels(square):
    """PSNR of a mean square error."""
    return 10 * math.log10(4 / square)


def test_the_mean_of_samples_is_nearer_to_the_truth_than_a_sample_by_as_much_as_it_must(exact, images):
    found, _ = restoration(exact, images, CONFIG)
    error = STD**2 * (1 - 1 / LOW.factor**2)  # what the averages leave open
    scores = {name: each["psnr"] for name, each in found["scores"].items()}
    assert scores["one sample"] == pytest.approx(decibels(2 * error), abs=0.15)
    assert scores[f"mean of {SAMPLES} samples"] == pytest.approx(decibels((1 + 1 / SAMPLES) * error), abs=0.15)
    assert scores["nearest"] == pytest.approx(decibels(error), abs=0.15)  # here the posterior mean itself
    assert found["consistency"] < 1e-3


def test_samples_have_the_spread_of_the_posterior_and_their_picture_in_them(exact, images):
    asked = truth(exact, images, seed=0, count=40)
    made = restored(exact, asked, CONFIG, samples=6)
    way = degradation(LOW)
    again = way.again(made.flatten(0, 1), asked.y).unflatten(0, made.shape[:2])
    assert torch.allclose(again, asked.y[:, None].expand_as(again), atol=1e-3)
    assert float(made.var(1).mean()) == pytest.approx(STD**2 * 0.75, rel=0.03)
