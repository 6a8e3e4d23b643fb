"""Estimates for GPUs: arithmetic on stated numbers."""

from pathlib import Path

import pytest

from rectiflow.base.errors import InputError
from rectiflow.plan.estimate import CONTEXT, estimate
from rectiflow.plan.forecast import Forecast, stage_forecast
from rectiflow.plan.gpus import GPUS, gpu
from rectiflow.plan.plan import plan


@pytest.fixture
def told(stage, config):
    """A run whose steps cost nothing but their multiplications: they grow with the batch alone."""
    one = stage_forecast(stage(64), [stage(8), stage(16)], config, 10**9)
    return Forecast(recipe="digits", stages=(one,), available=10**9, free=10**9)


def test_a_step_is_multiplications_and_traffic(told, config):
    one = told.stages[0].model_copy(update={"overhead": 0.0})
    found = estimate("a100", GPUS["a100"], told.model_copy(update={"stages": (one,)}), [config], 0.5)
    step = 96e9 / (0.5 * 312e12) + 1000 * 4 * (7 + 2 * 2) / 2.039e12  # two power averages
    assert found.stages[0].step == pytest.approx(step)
    assert found.stages[0].samples_per_second == pytest.approx(64 / step)
    # What is between steps lasts as many steps as here, and the start is no matter of the GPU.
    events = one.total.wall - 7 - 2 - one.parts["steps"].wall
    assert found.seconds == pytest.approx(7 + step * (100 + events / one.step.wall))
    assert found.stages[0].memory == pytest.approx(CONTEXT + 1000 * 4 * (4 + 2) + 64 * 1e6)
    assert found.stages[0].largest_batch == int((80e9 - CONTEXT - 24_000) / 1e6)


def test_no_step_is_faster_than_its_calls(told, config):
    one = told.stages[0].model_copy(update={"overhead": 0.02})
    found = estimate("h100", GPUS["h100"], told.model_copy(update={"stages": (one,)}), [config], 0.4)
    assert found.stages[0].step == 0.02


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_several_share_the_batch_and_fsdp_the_weights(told, config, kind):
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update={"kind": kind})})
    big = told.stages[0].model_copy(update={"parameters": 10**9, "overhead": 0.0})
    told = told.model_copy(update={"stages": (big,)})
    one, eight = (estimate("h100", GPUS["h100"], told, [config], 0.4, count) for count in (1, 8))
    states, samples = 10**9 * 24, 64 * 1e6
    assert one.stages[0].memory == pytest.approx(CONTEXT + states + samples)
    share = 8 if kind == "fsdp" else 1
    assert eight.stages[0].memory == pytest.approx(CONTEXT + states / share + samples / 8)
    assert eight.sharded is (kind == "fsdp")
    assert not one.sharded


def test_float32_runs_at_the_rate_of_float32(told, config):
    config = config.model_copy(update={"precision": "float32"})
    found = estimate("4090", GPUS["4090"], told, [config], 0.4)
    assert (found.precision, found.peak) == ("float32", 82.6e12)


def test_what_cannot_be_is_told_in_a_line(config):
    with pytest.raises(InputError, match=r"unknown GPU 'h1000'\. Did you mean 'h100"):
        plan(config, ["h1000"])
    with pytest.raises(InputError, match=r"\(0, 1\], received 40"):
        plan(config, ["h100"], utilisation=40)
    with pytest.raises(InputError, match="at least 1, received 0"):
        plan(config, ["h100"], count=0)
    assert gpu("RTX4090") is gpu("rtx-4090") is GPUS["4090"]


def test_stated_rates_are_dense(told):
    """A sparse rate, twice the dense one, is above what the tensor cores of any of them give."""
    assert all(each.bfloat16 < 1e15 for each in GPUS.values())
    assert all(1.9 < each.bfloat16 / each.float32 < 20 for each in GPUS.values())


def test_the_page_says_what_is_computed_with():
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    for name, each in GPUS.items():
        rates = [each.bfloat16 / 1e12, each.float32 / 1e12, each.memory / 1e9, each.bandwidth / 1e12]
        cells = [name, each.name, *(f"{rate:g}" for rate in rates), each.source]
        assert f"| {' | '.join(cells)} |" in page
