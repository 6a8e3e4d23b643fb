"""What a killed process leaves half done: a model of an earlier step, files that are not whole, a metric to come."""

import shutil

import pytest
from rich.console import Console

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.run import train
from rectiflow.training.run_folder import finished

RUNS = ("whole", "cut")


def test_the_model_of_an_earlier_step_is_no_finished_run(tmp_path, small):
    """Killed between its last checkpoint and its last model."""
    train(small, tmp_path / "run", Console(quiet=True))
    model = tmp_path / "run" / "model"
    weights, text = (model / "flow.safetensors").read_bytes(), (model / "config.json").read_text()
    assert '"step": 6' in text
    (model / "config.json").write_text(text.replace('"step": 6', '"step": 3'))
    assert not finished(small, tmp_path / "run")
    assert train(small, tmp_path / "run", Console(quiet=True)).trained
    assert (model / "config.json").read_text() == text
    assert (model / "flow.safetensors").read_bytes() == weights


def test_halves_that_a_killed_process_left_are_cleared_away(tmp_path, small):
    """Also before the run's first line: the folder is not taken for somebody else's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.yaml.12.tmp").write_text("steps")
    (run / ".inventory.tmp").mkdir()
    train(small, run, Console(quiet=True))
    for path in (run / ".metrics.jsonl.12.tmp", run / "samples" / ".00000500.png.7.tmp", run / "mine.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (run / "model").rename(run / ".model.old")
    for mine in ("model.old", "model.tmp", "inventory.old"):
        (run / mine).mkdir()
    assert not train(small, run, Console(quiet=True)).trained
    assert {path.name for path in run.rglob("*.tmp")} == {"mine.tmp", "model.tmp"}
    assert {path.name for path in run.rglob("*.old")} == {"model.old", "inventory.old"}
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / ".thesis.12.tmp").touch()
    with pytest.raises(InputError, match="not empty and not a run"):
        train(small, strange, Console(quiet=True))


def test_the_metric_of_the_newest_checkpoint_stands_until_the_next_check(tmp_path, small):
    """The best of a run that was stopped are those of one that never was."""
    every = small.every.model_copy(update={"held_out": 4, "save": 1})
    asked = small.model_copy(update={"every": every, "keep": 6})
    train(asked, tmp_path / "whole", Console(quiet=True))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000005")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    assert train(asked, tmp_path / "cut", Console(quiet=True)).trained
    metrics = [[Checkpoints(tmp_path / run / "checkpoints", 6).metric(step) for step in range(1, 7)] for run in RUNS]
    assert metrics[0] == metrics[1]
    assert metrics[0][:3] == [None] * 3
    assert metrics[0][3] == metrics[0][4] != metrics[0][5]
