"""Estimates for GPUs: arithmetic on stated numbers."""

from pathlib import Path

import pytest

from rectiflow.base.errors import InputError
from rectiflow.plan.estimate import CALL, CONTEXT, estimate, estimate_shapes, shares
from rectiflow.plan.forecast import Forecast, stage_forecast
from rectiflow.plan.gpus import GPUS, gpu
from rectiflow.plan.outline import Outline, StageOutline
from rectiflow.plan.plan import plan
from rectiflow.training.config import ParallelConfig


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


@pytest.fixture
def outlined(config):
    """Round numbers of a run in latents, of a batch of 64."""
    flow = StageOutline(
        name="flow",
        parameters=10**9,
        batch=64,
        steps=100,
        precision="bfloat16",
        flops=1e15,
        between=2e15,
        calls=1000,
        states=24e9,
        fixed=2e9,
        per_sample=1e8,
        gathered=1e9,
        frozen=3e8,
    )
    latents = StageOutline(name="latents", flops=4e15, frozen=3e8)
    return Outline(recipe="latent", stages=(latents, flow), available=10**9, free=10**9)


def test_from_shapes_a_step_is_what_takes_longest(outlined, config):
    found = estimate_shapes("h100", GPUS["h100"], outlined, [config], 0.5)
    latents, flow = found.stages
    rate, optimiser = 0.5 * 989.4e12, 1e9 * 4 * (7 + 2 * 2) / 3.35e12
    assert found.from_shapes
    assert flow.step == pytest.approx(1e15 / rate + optimiser)
    assert flow.seconds == pytest.approx(100 * flow.step + 2e15 / rate)
    assert latents.seconds == pytest.approx(4e15 / rate)
    assert latents.memory == CONTEXT + 3e8

    def step(**changes: float) -> float:
        one = outlined.stages[1].model_copy(update={"flops": 0.0, "fixed": 0.0, "per_sample": 0.0, **changes})
        told = outlined.model_copy(update={"stages": (one,)})
        return estimate_shapes("h100", GPUS["h100"], told, [config], 0.5).stages[0].step - optimiser

    assert step() == pytest.approx(1000 * CALL)  # small ones are started no faster
    assert step(per_sample=1e9) == pytest.approx(4 * 64e9 / 3.35e12)  # nor is anything kept any faster
    assert step(per_sample=1e9, flops=1e15) == pytest.approx(1e15 / rate)


def test_from_shapes_memory_is_states_and_what_is_kept(outlined, config):
    one, eight = (estimate_shapes("h100", GPUS["h100"], outlined, [config], 0.4, count) for count in (1, 8))
    held = CONTEXT + 3e8 + 24e9 + 2e9
    assert one.stages[1].memory == pytest.approx(held + 64e8)
    assert eight.stages[1].memory == pytest.approx(held + 8e8)
    assert one.stages[1].largest_batch == int((80e9 - held) / 1e8)
    assert eight.stages[1].largest_batch == 8 * one.stages[1].largest_batch
    parts = config.model_copy(update={"accumulate": 4})
    in_parts = estimate_shapes("h100", GPUS["h100"], outlined, [parts], 0.4)
    assert in_parts.stages[1].memory == pytest.approx(held + 16e8)
    assert in_parts.stages[1].largest_batch == 4 * one.stages[1].largest_batch
    big = outlined.stages[1].model_copy(update={"states": 100e9})
    none = estimate_shapes("h100", GPUS["h100"], outlined.model_copy(update={"stages": (big,)}), [config], 0.4)
    assert none.stages[0].largest_batch == 0
    assert not none.fits


@pytest.mark.parametrize(("shard", "parts"), [(0, 8), (4, 4)])
def test_from_shapes_fsdp_cuts_up_states_and_gathers_some(outlined, config, shard, parts):
    config = config.model_copy(update={"parallel": ParallelConfig(kind="fsdp", shard=shard)})
    found = estimate_shapes("h100", GPUS["h100"], outlined, [config], 0.4, 8)
    assert found.sharded
    assert found.stages[1].memory == pytest.approx(CONTEXT + 3e8 + 24e9 / parts + 1e9 + 8e8)


def test_gpus_that_could_not_share_a_run_are_refused(config):
    assert shares(config, 64) == 1
    with pytest.raises(InputError, match="a batch of 64 is too small for 65 GPUs"):
        shares(config, 65)
    cut = config.model_copy(update={"parallel": ParallelConfig(kind="fsdp", shard=3)})
    with pytest.raises(InputError, match=r"parallel\.shard=3 does not divide 8 GPUs"):
        plan(cut, ["h100"], count=8)
    assert shares(cut, 6) == 3
    assert shares(cut, 1) == 1


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
