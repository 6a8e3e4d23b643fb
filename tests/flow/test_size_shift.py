"""The time shift that grows with the number of elements of a sample."""

import math

import pytest
import torch
from torch import nn

from rectiflow.base.randomness import Key
from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.flow.flow import Flow
from rectiflow.flow.source import Uniform
from rectiflow.flow.times import LogitNormal, shift, size_shift
from rectiflow.flow.weight import log_snr_weight, weighted_times
from rectiflow.sampling.likelihood import LikelihoodConfig, log_likelihood
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver

STILL, CLIP = (16, 1, 16, 16), (16, 5, 16, 16)


class Recorder(nn.Module):
    """Says x_t, and remembers when it was asked."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x_t, t, condition):
        self.times.append(float(t[0]))
        return x_t


def test_published_values():
    assert size_shift((4, 32, 32)) == 1  # f8c4 at 256 pixels
    assert size_shift((16, 32, 32)) == 2  # f8c16
    assert size_shift((16, 5, 32, 32)) == pytest.approx(4.47, abs=0.01)
    assert size_shift((768, 16, 16)) == pytest.approx(6.93, abs=0.01)
    assert size_shift((1, 8, 8)) == 1  # never below


def test_it_multiplies_the_shift_and_is_off_unless_asked_for():
    assert Flow(Recorder(), shift=3.0).shift_for(CLIP) == 3
    flow = Flow.build(Recorder(), FlowConfig(shift=3.0, shift_by_size=True))
    assert flow.shift_for(CLIP) == pytest.approx(3 * math.sqrt(5))
    assert flow.shift_for(STILL) == 3


def test_a_flow_made_alike_keeps_every_convention():
    config = FlowConfig(schedule="trig", prediction="data", shift=3.0, sigma_data=0.4, shift_by_size=True)
    flow, other = Flow.build(Recorder(), config), Recorder()
    alike = flow.alike(other, Uniform())
    assert (alike.network, type(alike.source)) == (other, Uniform)
    names = ("schedule", "prediction", "shift", "sigma_data", "one_step", "shift_by_size")
    assert [getattr(alike, name) for name in names] == [getattr(flow, name) for name in names]
    assert (flow.alike().network, flow.alike().source) == (flow.network, flow.source)


@pytest.mark.parametrize("shape", [STILL, CLIP])
def test_sampling_and_likelihood_stop_at_the_shifted_times(shape):
    flow = Flow.build(Recorder(), FlowConfig(shift_by_size=True))
    expected = shift(torch.linspace(1, 0, 5), size_shift(shape)).tolist()
    x = sample(flow, torch.zeros(2, *shape), solver("euler"), 4)
    assert flow.network.times == pytest.approx(expected[:4])
    flow.network.times.clear()
    log_likelihood(flow, x, config=LikelihoodConfig(steps=4, solver="euler", probes=2))
    assert flow.network.times == pytest.approx(expected[:0:-1])


@pytest.mark.parametrize("kind", ["velocity", "elbo", "sigmoid"])
def test_training_draws_and_weighs_by_the_shape(kind):
    """A logit-normal is moved by log s; a weight of the log-SNR stays what it is, whatever the shape."""
    flow = Flow.build(Recorder(), FlowConfig(shift_by_size=True))
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for shape in (STILL, CLIP):
        density, weight = weighted_times(flow, TimesConfig(density="logit-normal"), WeightConfig(kind=kind), shape)
        assert torch.allclose(density.density(t), LogitNormal(math.log(size_shift(shape))).density(t))
        amounts_to = log_snr_weight(flow.schedule, density, weight, t)
        if kind != "velocity":
            assert torch.allclose(amounts_to, weight.of_log_snr(flow.schedule.log_snr(t)))


def test_what_more_elements_hide_is_undone_by_the_shift():
    """The mean of n equal elements is as noisy at shift(t, √n) as one element at t."""
    t, n = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64), 5
    draws = Key(0, "z").normal(torch.arange(4000), (n,)).double()
    later = shift(t, math.sqrt(n))[:, None, None]
    ratio = (later * draws).mean(-1).std(1) / (1 - later[:, 0, 0])
    assert torch.allclose(ratio, t / (1 - t), rtol=0.05)
