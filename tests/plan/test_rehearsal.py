"""Rehearsals of real runs, in this process: what is told of them is what they are."""

import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from rectiflow import workflow
from rectiflow.data.remembered import Remembered
from rectiflow.evaluation.features import SmallEncoder
from rectiflow.networks.build import build
from rectiflow.plan import clock
from rectiflow.plan.child import rehearse
from rectiflow.plan.forecast import forecast
from rectiflow.plan.measured import Asked, Cost, Rehearsal
from rectiflow.plan.probe import in_a_child, private, probe, training_stages
from rectiflow.plan.whole import _reads
from rectiflow.recipes.registry import resolve
from rectiflow.training.generators import GANStage
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from rectiflow.training.watch import Watch
from tests.data.read_count import Read

TINY = ("every={log: 4, held_out: 6, preview: 8, first_preview: 2, save: 6}", "preview={count: 1, rows: 2, steps: 4}")


def asked(config, folder: Path, events: bool = True) -> Asked:
    return Asked(
        config=config.model_dump(mode="json"), folder=str(folder), events=events, seconds=0.2, began=time.time()
    )


@pytest.fixture
def tiny(small):
    return resolve("digits", settings=["steps=16", "batch=8", *TINY, "precision=float32", "threads=1"]).model_copy(
        update={"network": small.network}
    )


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def closed_form(network: nn.Module, tokens: int) -> int:
    """Multiplications and additions for a sample, forward and backward, of a DiT's matrix products."""
    config = network.config
    width, hidden = config.width, network.blocks[0].feed_forward.down.in_features
    pixels = config.patch**2 * config.channels
    linears = tokens * (3 * width * width + width * width + width * 2 * hidden + hidden * width) + width * 6 * width
    embedded = [part for part in network.embedding.modules() if isinstance(part, nn.Linear)]
    first, *rest = [part.in_features * part.out_features for part in embedded]
    both = config.depth * linears + width * 2 * width + tokens * width * pixels + sum(rest)
    # What comes from the data asks for no gradient: one product less. Attention: 2 products, and 5 backward.
    return 2 * (3 * both + 2 * (tokens * pixels * width + first) + config.depth * 7 * tokens**2 * width)


def test_what_is_told_of_a_run_is_what_it_is(tiny, tmp_path):
    real = Trainer.fit
    found = rehearse(asked(tiny, tmp_path / "rehearsed"))
    assert Trainer.fit is real
    (stage,) = found.stages
    network = build(tiny.network.model_copy(update={"channels": 1, "classes": 10}))
    assert stage.parameters == sum(p.numel() for p in network.parameters())
    assert stage.flops == pytest.approx(8 * closed_form(network, tokens=4), rel=0.01)
    assert sum(window.count for window in stage.windows) == tiny.steps
    assert stage.step.wall > 0
    assert stage.steps_peak <= stage.peak + 2**20
    whole = forecast(tiny, [tiny], found, [found, found], 10**12, 10**12)

    run = tmp_path / "run"
    workflow.run(tiny, run, Console(quiet=True))
    assert whole.disk == pytest.approx(size(run), rel=0.05)
    assert whole.stages[0].disk > size(run / "model")


def test_every_kind_of_step_is_met(tmp_path):
    """An adversary that learns late, and is felt later still: three kinds of step, of which the middle one is short."""
    settings = [
        "data={set: digit-scenes}",
        "steps=40",
        "batch=2",
        "network={width: 4, multipliers: [1, 2], latent_channels: 2, groups: 2}",
        "discriminator={start: 0.5, lead: 0.1, width: 4}",
        "every={log: 10, held_out: 0, preview: 0, save: 40}",
        "precision=float32",
        "threads=1",
    ]
    found = rehearse(asked(resolve("autoencoder", settings=settings), tmp_path, events=False))
    windows = found.stages[0].windows
    assert [(window.start, window.count) for window in windows] == [(0, 20), (20, 4), (24, 16)]
    assert all(window.taken >= 2 for window in windows)
    assert windows[0].flops < windows[1].flops < windows[2].flops


def test_steps_are_told_by_the_clock(tiny, tmp_path, monkeypatch):
    """A clock that only moves when a batch is asked for: a second each."""
    at = Cost()

    def tick(stage, step, part=slice(None), turn=""):
        nonlocal at
        at = at + Cost(wall=1.0, cpu=0.5)
        return original(stage, step, part, turn)

    original = FlowStage.loss
    monkeypatch.setattr(FlowStage, "loss", tick)
    monkeypatch.setattr(clock, "now", lambda device=None: at)
    found = rehearse(asked(tiny, tmp_path, events=False))
    assert found.stages[0].step == Cost(wall=1.0, cpu=0.5)
    assert found.stages[0].warm == Cost()


def test_the_first_step_of_a_kind_counts_as_warming_up(tiny, tmp_path, monkeypatch):
    """A clock by which a step takes 1/8 s, one with the penalty 1/4 s, and the first of each kind a second."""
    at, met = Cost(), set()

    def tick(stage, step, part=slice(None), turn=""):
        nonlocal at
        if turn == "generator":
            kind = step % 4 == 0
            seconds = (0.25 if kind else 0.125) if kind in met else 1.0
            met.add(kind)
            at = at + Cost(wall=seconds, cpu=seconds)
        return original(stage, step, part, turn)

    original = GANStage.loss
    monkeypatch.setattr(GANStage, "loss", tick)
    monkeypatch.setattr(Watch, "_count", lambda watch, step: 1.0)  # it would take one of each kind before
    monkeypatch.setattr(clock, "now", lambda device=None: at)
    settings = ["steps=100", "batch=4", "gan.penalty_every=4", "precision=float32", "threads=1"]
    run = resolve("gan", settings=settings).model_copy(update={"network": tiny.network})
    (stage,) = rehearse(asked(run, tmp_path, events=False)).stages
    told = [(window.start, window.count, window.mean.wall) for window in stage.windows]
    assert told == [(0, 25, 0.25), (1, 75, 0.125)]
    assert all(window.taken >= 2 for window in stage.windows)
    assert stage.warm.wall == 0.75  # the last step is tried before the first, and is a plain one


@pytest.mark.parametrize(("first", "usual"), [(1.0, 0.25), (10.0, 0.25), (10.0, 3.0)])
def test_a_kind_that_comes_late_is_not_told_by_its_first_step(tiny, tmp_path, monkeypatch, first, usual):
    """As where its shape is compiled: in the later half of the steps, the first of which takes long."""
    at, met = Cost(), []

    def tick(stage, step, part=slice(None), turn=""):
        nonlocal at
        if step >= 50:
            met.append(step)
        at = at + Cost(wall=0.125 if step < 50 else usual if len(met) > 2 else first)  # the last step is tried before
        return original(stage, step, part, turn)

    original = FlowStage.loss
    monkeypatch.setattr(FlowStage, "loss", tick)
    monkeypatch.setattr(FlowStage, "kind", lambda stage, step: step >= 50)
    monkeypatch.setattr(Watch, "_count", lambda watch, step: 1.0)
    monkeypatch.setattr(clock, "now", lambda device=None: at)
    asked_for = tiny.model_copy(update={"steps": 100})
    (stage,) = rehearse(asked(asked_for, tmp_path, events=False)).stages
    assert [window.mean.wall for window in stage.windows] == [0.125, usual]
    assert stage.warm.wall == first - usual


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_are_rehearsed(tiny, tmp_path, steps):
    (stage,) = rehearse(asked(tiny.model_copy(update={"steps": steps}), tmp_path, events=False)).stages
    assert sum(window.count for window in stage.windows) == steps


def test_small_batches_come_first_and_a_whole_one_as_far_as_it_fits(stage, config):
    """A fake rehearsal: 0.01 s and 1 MB for each sample."""
    seen = []

    def fake(run, events: bool) -> Rehearsal:
        seen.append((run.batch, events, run.compile))
        return Rehearsal(stages=(stage(run.batch),))

    config = config.model_copy(update={"batch": 64, "compile": True})
    probe(config, 10**10, 1.0, fake)
    assert seen == [(8, False, False), (16, False, False), (64, True, True)]
    seen.clear()
    probe(config.model_copy(update={"batch": 1000}), 10**10, 1.0, fake)
    assert seen[-1][0] == 666  # of 0.015 s each, a step of ten seconds
    seen.clear()
    probe(config, 10**8 + 40 * 10**6, 1.0, fake)
    assert seen[-1][0] == 16  # four fifths of the memory hold no more


def test_stages_are_lowered_alike(tmp_path):
    config = resolve("clips")
    assert [each.batch for each in training_stages(config)] == [32, 4, 32]
    kept = private(config.model_copy(update={"watch": ("tensorboard", "wandb")}))
    assert kept.watch == ("tensorboard",)


def test_a_process_of_its_own_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("tempfile.tempdir", None)
    found = in_a_child(tiny, False, 0.1)
    assert found.stages[0].start.wall > 0
    assert not list(tmp_path.glob("rectiflow-plan-*"))


def test_time_is_not_asked_of_the_device_of_a_cpu():
    before = clock.now(torch.device("cpu"))
    assert clock.now().wall >= before.wall


@pytest.mark.parametrize(("count", "room"), [(50, 10**6), (3000, 10**6), (3000, 500), (60_000, 4000)])
def test_readings_of_pictures_are_those_that_there_are(count, room):
    """The encoder of the scores looks at 38,400 pictures, some of them often."""
    rows = SmallEncoder.rows(count, 300, 0)
    images = Read(count, 1)
    kept = Remembered(images, room)
    for part in rows.split(128):
        kept.fetch(part)
    assert _reads(rows, count, room) == pytest.approx(int(images.reads.sum()), rel=0.02)
