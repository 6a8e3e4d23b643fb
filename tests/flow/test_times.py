import math

import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.config import TimesConfig
from rectiflow.flow.times import LogitNormal, Mode, Shifted, Uniform, shift, stratified, time_density

DENSITIES = [
    Uniform(),
    LogitNormal(0.0, 1.0),
    LogitNormal(-0.4, 1.2),
    Mode(1.29),
    Mode(-1.0),
    Shifted(Uniform(), 3.0),
    Shifted(LogitNormal(0.2, 0.8), 0.4),
    Shifted(Mode(0.7), 2.0),
]


def _pole(density):
    return isinstance(density, Mode) and density.scale == -1  # there π diverges at the ends, integrably


@pytest.mark.parametrize("density", DENSITIES)
def test_density_is_the_derivative_of_the_inverse_of_the_quantile(density):
    u, h = torch.linspace(0.02, 0.98, 49, dtype=torch.float64), 1e-6
    slope = (density.quantile(u + h) - density.quantile(u - h)) / (2 * h)
    assert torch.allclose(density.density(density.quantile(u)) * slope, torch.ones_like(u), rtol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
def test_density_integrates_to_one(density):
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert float(density.density(t).mean()) == pytest.approx(1, abs=1e-6 if not _pole(density) else 0.01)


def test_logit_normal_moments():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    logits = torch.logit(LogitNormal(0.3, 0.7).quantile(u))
    assert float(logits.mean()) == pytest.approx(0.3, abs=1e-6)
    assert float(logits.std()) == pytest.approx(0.7, abs=1e-2)


def test_stratified_times_fill_every_stratum():
    for step in range(20):
        t = stratified(Uniform(), Key(0, "time", step), torch.arange(16), 16)
        assert sorted((t * 16).floor().long().tolist()) == list(range(16))
    offsets = [float(stratified(Uniform(), Key(0, "time", step), torch.tensor([0]), 16)) for step in range(500)]
    assert abs(sum(offsets) / 500 - 0.5) < 0.05  # each single time is still uniform


def test_a_part_of_a_batch_gets_the_times_of_the_whole():
    whole = stratified(LogitNormal(), Key(0, "time", 3), torch.arange(8), 8)
    part = stratified(LogitNormal(), Key(0, "time", 3), torch.arange(4, 8), 8)
    assert torch.allclose(whole[4:], part, rtol=1e-14, atol=0)


def test_stratification_lowers_the_variance_of_a_mean():
    means = [stratified(Uniform(), Key(0, "time", step), torch.arange(16), 16).square().mean() for step in range(300)]
    independent = Key(0, "u").uniform(torch.arange(300), (16,)).square().mean(1)
    assert torch.stack(means).std() < 0.3 * independent.std()


@pytest.mark.parametrize("s", [0.5, 1.0, 3.0])
def test_shift_is_an_offset_of_the_logit(s):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(torch.logit(shift(t, s)), torch.logit(t) + math.log(s))
    assert torch.allclose(shift(shift(t, s), 1 / s), t)
    assert shift(torch.tensor([0.0, 1.0]), s).tolist() == [0, 1]


def test_logit_normal_mean_and_shift_are_one_knob():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(
        shift(LogitNormal(0.2, 1.0).quantile(u), 3.0), LogitNormal(0.2 + math.log(3), 1.0).quantile(u)
    )


def test_density_by_name():
    assert isinstance(time_density(TimesConfig()), Uniform)
    mode = time_density(TimesConfig(density="mode", scale=0.5), shift_by=2.0)
    assert isinstance(mode, Shifted)
    assert (mode.inner.scale, mode.shift_by) == (0.5, 2.0)
    named = time_density(TimesConfig(density="logit-normal", mean=0.5, std=2.0))
    assert isinstance(named, LogitNormal)
    assert (named.mean, named.std) == (0.5, 2.0)


@pytest.mark.parametrize("scale", [-1.0, -0.3, 0.0, 1.29, 2 / (math.pi - 2)])
def test_mode_formula_and_its_ends(scale):
    """t = 1−u′−s(cos²(πu′/2)−1+u′) with u′ = 1−u; monotone over the whole range of s."""
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    other = 1 - u
    t = 1 - other - scale * (torch.cos(math.pi / 2 * other) ** 2 - 1 + other)
    assert torch.allclose(Mode(scale).quantile(u), t, atol=1e-12)
    assert (t.diff() > -1e-12).all()
    assert t[[0, -1]].tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("scale", [-1.1, 1.8])
def test_mode_that_folds_back(scale):
    with pytest.raises(InputError, match="scale of mode times"):
        Mode(scale)


def test_shifted_logit_normal_is_a_logit_normal():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    moved = LogitNormal(0.2 + math.log(3), 1.0)
    assert torch.allclose(Shifted(LogitNormal(0.2, 1.0), 3.0).density(t), moved.density(t), rtol=1e-12)


@pytest.mark.parametrize("shift_by", [1.0, 3.0])
def test_discrete_times_are_the_steps_of_a_chain(shift_by):
    density = time_density(TimesConfig(density="discrete", count=10), shift_by)
    times = stratified(density, Key(0, "time"), torch.arange(40), 40)
    steps = shift(torch.arange(1, 11, dtype=torch.float64) / 10, shift_by)
    values, counts = times.unique(return_counts=True)
    assert torch.allclose(values, steps)
    assert counts.tolist() == [4] * 10
    assert torch.allclose(density.before(values), torch.cat([torch.zeros(1), steps[:-1]]).double())
