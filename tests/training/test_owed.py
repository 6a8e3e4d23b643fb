"""What is due after the step in which a run is stopped is done when it goes on, and all is as if never stopped."""

import errno
import json

import pytest
from safetensors.torch import load_file

from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import EmaConfig
from rectiflow.training.run import train
from rectiflow.training.trainer import Trainer
from tests.conftest import same
from tests.training.checkpoints import raising
from tests.training.test_killed import OF_TIME
from tests.training.test_run import QUIET, state, stop_at


def left(run, config):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    saved = Checkpoints(run / "checkpoints", config.keep)
    return {
        "metrics": [{name: line[name] for name in sorted(line.keys() - OF_TIME)} for line in lines],
        "metric of each checkpoint": {step: saved.metric(step) for step in saved.steps()},
        "owed": [step for step in saved.steps() if saved.owed(step)],
        "previews": sorted(path.name for path in (run / "samples").glob("*.png")),
        "averages": {path.name: load_file(path) for path in (run / "averages").glob("*")},
        "state": state(config, run),
    }


# From 0: after the third all is due, after the fourth nothing; the last has all of it at once.
@pytest.mark.parametrize("step", [2, 3, 5])
def test_what_was_due_at_a_stop_is_made_up(small, tmp_path, monkeypatch, step):
    every = small.every.model_copy(update={"held_out": 3, "average": 3, "preview": 3, "save": 3, "log": 1})
    ema = EmaConfig(kind="power", lengths=(0.05, 0.1))
    asked = small.model_copy(update={"every": every, "ema": ema, "keep_best": 1})
    train(asked, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert train(asked, tmp_path / "cut", QUIET).step == step + 1
    saved = Checkpoints(tmp_path / "cut" / "checkpoints", asked.keep)
    assert saved.owed(step + 1) == (step < 5)
    assert train(asked, tmp_path / "cut", QUIET).finished
    whole, cut = (left(tmp_path / name, asked) for name in ("whole", "cut"))
    assert len(whole["averages"]) == 4
    assert len(whole["previews"]) >= 2
    for name, value in whole.items():
        assert same(value, cut[name]), name


def test_snapshots_of_steps_that_are_not_of_the_run_are_taken_away(small, tmp_path):
    """As where the newest checkpoint is lost, and the run goes on from the one before with snapshots more rarely."""
    every = small.every.model_copy(update={"average": 1, "save": 3})
    asked = small.model_copy(update={"every": every, "ema": EmaConfig(kind="power", lengths=(0.05, 0.1))})
    train(asked, tmp_path, QUIET)
    (tmp_path / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    later = asked.model_copy(update={"every": every.model_copy(update={"average": 6})})
    train(later, tmp_path, QUIET)
    steps = sorted({path.name.split("-")[1] for path in (tmp_path / "averages").glob("*")})
    assert [int(step) for step in steps] == [1, 2, 3, 6]


def test_what_was_made_up_is_not_made_up_again(small, tmp_path, monkeypatch):
    """As where a run is stopped where its held-out loss is due, goes on, and is killed before it saves."""
    every = small.every.model_copy(update={"held_out": 3, "save": 100, "log": 1})
    asked = small.model_copy(update={"every": every})
    train(asked, tmp_path / "whole", QUIET)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert train(asked, cut, QUIET).step == 3
    assert Checkpoints(cut / "checkpoints", asked.keep).owed(3)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", raising(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            train(asked, cut, QUIET)
    saved = Checkpoints(cut / "checkpoints", asked.keep)
    assert (saved.steps(), saved.owed(3)) == ([3], False)
    assert train(asked, cut, QUIET).finished
    assert left(cut, asked)["metrics"] == left(tmp_path / "whole", asked)["metrics"]
