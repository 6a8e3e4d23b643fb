"""Arithmetic from what was measured to what is forecast."""

import pytest

from rectiflow.plan import clock
from rectiflow.plan.forecast import counts, forecast, stage_forecast
from rectiflow.plan.line import Line
from rectiflow.plan.measured import Between, Cost, Rehearsal
from rectiflow.training.config import EveryConfig


def by_hand(every: EveryConfig, steps: int) -> dict[str, int]:
    """How often each is due, asked step by step as the trainer asks."""
    found = dict.fromkeys(("log", "held_out", "save", "average", "preview"), 0)
    for step in range(1, steps + 1):
        for name in found:
            apart = getattr(every, name)
            due = apart > 0 and (step % apart == 0 or step == steps)
            if name == "preview" and every.first_preview:
                doublings, rest = divmod(step, every.first_preview)
                due |= doublings > 0 and not rest and doublings.bit_count() == 1 and step < every.preview
            found[name] += due
    return found


@pytest.mark.parametrize("steps", [1, 15, 16, 64, 100, 500, 513])
@pytest.mark.parametrize(
    "every",
    [
        EveryConfig(),
        EveryConfig(log=7, held_out=0, preview=0, first_preview=3, save=0, average=5),
        EveryConfig(log=20, held_out=250, preview=500, first_preview=16, save=250),
        EveryConfig(preview=64, first_preview=16),
        EveryConfig(preview=48, first_preview=3),
    ],
)
def test_events_are_as_often_as_the_trainer_has_them(every, steps):
    assert counts(every, steps) == by_hand(every, steps)


def test_time_is_steps_and_events(stage, config):
    told = stage_forecast(stage(64), [stage(8), stage(16)], config, 10**9)
    # Steps: 75 of 0.64 s and 25 of thrice that. Held-out 4, previews 3 and 4 early, saves 2, averages 4.
    steps = 75 * 0.64 + 25 * 3 * 0.64
    events = {"held-out": 5 + 3, "previews": 3 + 6 * 2, "saves": 0.5 + 4, "averages": 4 * 0.25}
    assert {name: round(told.parts[name].wall, 6) for name in events} == events
    assert told.parts["steps"].wall == pytest.approx(steps)
    assert told.total.wall == pytest.approx(7 + 2 + steps + sum(events.values()))
    assert told.step.wall == pytest.approx(steps / 100)
    assert told.flops == pytest.approx(64e9 * (0.75 + 0.25 * 3))


def test_memory_is_linear_in_the_batch(stage, config):
    available = 10**9
    told = stage_forecast(stage(64, workers=10**7), [stage(8), stage(16)], config, available)
    assert told.per_sample == pytest.approx(1e6)
    assert told.memory == 2 * 10**8  # what is done between steps takes more here
    assert told.largest_batch == (available - 10**8 - 10**7) // 10**6
    larger = stage_forecast(stage(64), [stage(8), stage(16)], config.model_copy(update={"batch": 512}), available)
    assert larger.memory == 10**8 + 512 * 10**6


def test_a_smaller_batch_stands_for_the_whole(stage, config):
    config = config.model_copy(update={"batch": 640})
    told = stage_forecast(stage(64), [stage(8), stage(16)], config, 10**9)
    same = stage_forecast(stage(64), [stage(8), stage(16)], config.model_copy(update={"batch": 64}), 10**9)
    assert told.measured_batch == 64
    assert same.measured_batch is None
    assert told.step.wall == pytest.approx(10 * same.step.wall)
    assert told.parts["previews"] == same.parts["previews"]
    assert told.flops == pytest.approx(10 * same.flops)


def test_compiled_steps_are_not_laid_beside_eager_ones(stage, config):
    """Eager small batches take 1 MB a sample; the compiled whole one takes less than their line says."""
    config = config.model_copy(update={"compile": True})
    whole = stage(64, steps_peak=120 * 10**6)
    told = stage_forecast(whole, [stage(8), stage(16)], config, 10**9)
    assert told.per_sample == pytest.approx(1e6)
    assert told.largest_batch == 64 + 880


def test_disk_is_what_is_kept(stage, config):
    told = stage_forecast(stage(64), [stage(8), stage(16)], config, 10**9)
    assert told.disk == 5000 + 700 + 7 * 1000 + 4 * 300 + (10 + 4) * 10
    best = config.model_copy(update={"keep_best": 3})  # saved twice: no more than two can be kept
    assert stage_forecast(stage(64), [stage(8), stage(16)], best, 10**9).disk == told.disk + 5000
    blind = best.model_copy(update={"every": config.every.model_copy(update={"held_out": 0})})
    assert stage_forecast(stage(64), [stage(8), stage(16)], blind, 10**9).disk == told.disk - 4 * 10
    nothing = config.model_copy(update={"every": EveryConfig(log=10, held_out=0, preview=0, save=0, average=0)})
    assert stage_forecast(stage(64), [stage(8), stage(16)], nothing, 10**9).disk == 10 * 10


def test_a_run_is_its_stages(stage, config):
    encoding = Between(start=Cost(wall=1), cost=Cost(wall=9), bytes=50, peak=3 * 10**8, share=0.5)
    scores = Between(cost=Cost(wall=20), bytes=5, peak=10**8)
    whole = Rehearsal(
        stages=(stage(64, name="autoencoder"), stage(64)),
        encoding=encoding,
        scores=scores,
        end=Cost(wall=1.5),
        other=3,
    )
    small = [Rehearsal(stages=(stage(batch), stage(batch))) for batch in (8, 16)]
    told = forecast(config, [config, config], whole, small, 10**9, 10**9)
    assert [each.name for each in told.stages] == ["autoencoder", "latents", "flow", "evaluation"]
    one = told.stages[0]
    assert told.total.wall == pytest.approx(2 * one.total.wall + 10 + 20 + 1.5)
    assert told.disk == 2 * one.disk + 50 + 5 + 3
    assert told.memory == 3 * 10**8


def test_a_line_through_points():
    line = Line.through([(1, 5.0), (2, 7.0), (4, 11.0)])
    assert (line.base, line.slope) == (pytest.approx(3), pytest.approx(2))
    assert line.where(line.at(9.0)) == pytest.approx(9)
    falling = Line.through([(1, 5.0), (3, 1.0)])
    assert (falling.slope, falling.at(100)) == (0.0, 3.0)
    assert Line.through([(8, 2.0)]).where(3.0) == float("inf")


def test_one_of_two_steps_that_was_held_up_does_not_count_whole():
    """Two steps of a kind are all that is asked for, and the first of them may have compiled."""
    slow, usual = Cost(wall=40.0, cpu=20.0), Cost(wall=0.5, cpu=1.0)
    assert clock.mean([slow, usual]) == Cost(wall=(4 * 0.5 + 0.5) / 2, cpu=(4 * 1.0 + 1.0) / 2)
    assert clock.mean([usual, usual, slow]).wall == pytest.approx((0.5 + 0.5 + 2.0) / 3)
