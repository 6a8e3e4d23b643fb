"""Averages against closed forms and integrals."""

import numpy as np
import pytest
import torch
from torch import nn

from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import resolve
from rectiflow.training.config import EmaConfig
from rectiflow.training.ema import Ema, PowerEma, exponent, relative_length, weight_average
from tests.conftest import SMALL


def test_ema_closed_form():
    module, decay = nn.Linear(1, 1, bias=False), 0.4
    nn.init.constant_(module.weight, 1.0)
    ema = Ema(module, decay)
    average = 1.0
    for step in range(12):
        nn.init.constant_(module.weight, float(step))
        ema.update(module, step)
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * step
    assert float(ema.module.weight) == pytest.approx(average, rel=1e-6)
    assert not ema.module.weight.requires_grad


def test_no_average_is_the_weights_themselves():
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.0)
    nn.init.normal_(module.weight)
    ema.update(module, 0)
    assert torch.equal(ema.module.weight, module.weight)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97, 200.0])
def test_length_is_the_standard_deviation_of_the_profile(gamma):
    """p(τ) = (γ+1)·τ^γ on [0, 1], by a fine midpoint rule; and back."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = (gamma + 1) * tau**gamma / 200_000
    mean = (p * tau).sum()
    assert relative_length(gamma) == pytest.approx(np.sqrt((p * (tau - mean) ** 2).sum()), rel=1e-4)
    assert exponent(relative_length(gamma)) == pytest.approx(gamma, abs=1e-6, rel=1e-9)


def test_published_exponents():
    """Karras et al. 2024, section 3.1: σ_rel = 0.05 and 0.10 are γ ≈ 16.97 and 6.94; a uniform average has 1/√12."""
    assert (round(exponent(0.05), 2), round(exponent(0.10), 2)) == (16.97, 6.94)
    assert relative_length(0) == pytest.approx(12**-0.5)


def follow(trajectory, *lengths):
    """Power averages of a known trajectory of one weight, after its last step."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, -77.0)  # initial weights have no share
    average = PowerEma(module, lengths)
    for step, value in enumerate(trajectory):
        nn.init.constant_(module.weight, float(value))
        average.update(module, step)
    return [float(average.by_length[length].weight) for length in lengths]


def test_power_average_is_the_integral():
    """Of weights that stay θᵢ during step i: ∫ p(τ; T) θ(τ) dτ, the integral over (i−1, i] in closed form."""
    steps, lengths = np.arange(1, 301), (0.05, 0.1, 0.2)
    trajectory = np.sin(0.05 * steps) + 0.01 * steps
    for length, got in zip(lengths, follow(trajectory, *lengths), strict=True):
        power = exponent(length) + 1
        mass = (steps / 300) ** power - ((steps - 1) / 300) ** power
        assert got == pytest.approx((mass * trajectory).sum(), rel=1e-12)
        fine = (np.arange(300_000) + 0.5) / 1000  # a midpoint rule, to make sure of the closed form
        p = power * (fine / 300) ** (power - 1) / 300 / 1000
        assert got == pytest.approx((p * trajectory[np.floor(fine).astype(int)]).sum(), rel=1e-4)


def test_power_average_of_a_line_keeps_its_share():
    """The mean of the profile lies at (γ+1)/(γ+2) of the training, however long that is."""
    for count in (2_000, 4_000):
        (got,) = follow(np.arange(count) + 0.5, 0.1)
        assert got / count == pytest.approx((exponent(0.1) + 1) / (exponent(0.1) + 2), rel=1e-5)


def test_settings_name_the_average(small):
    assert small.ema == EmaConfig(decay=0.985)
    number = resolve("digits", settings=[*SMALL, "ema=0.5"])
    assert number.ema == EmaConfig(kind="exponential", decay=0.5)
    assert resolve("digits", settings=["ema.decay=0.5"]).ema == number.ema
    power = resolve("digits", settings=["ema.kind=power", "ema.lengths=[0.08, 0.02]"]).ema
    average = weight_average(nn.Linear(1, 1), power)
    assert isinstance(average, PowerEma)
    assert average.module is average.by_length[0.08]
    assert isinstance(weight_average(nn.Linear(1, 1), number.ema), Ema)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ema=2", "ema.decay: input should be less than 1, received 2"),
        ("ema=fast", "ema: "),
        ("ema.kind=powr", "Did you mean 'power'"),
        ("ema.lengths=[0.5]", "ema.lengths.0: input should be less than 0.28, received 0.5"),
        ("ema.length=0.1", "Did you mean 'lengths'"),
    ],
)
def test_bad_settings_are_one_line(setting, words):
    with pytest.raises(InputError) as error:
        resolve("digits", settings=[setting])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
