"""Models of checkpoints that a run keeps: those that it wrote itself when it was there."""

import shutil

import pytest
import torch

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.pipeline import Pipeline, Request
from rectiflow.recipes.registry import resolve
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import EmaConfig
from rectiflow.training.run import train
from rectiflow.training.weights_at import weights_at
from tests.conftest import same
from tests.training.checkpoints import flip
from tests.training.test_run import QUIET, stop_at


@pytest.fixture(params=["exponential", "power"])
def run(request, small, tmp_path, monkeypatch):
    """A run of six steps with all its checkpoints; its model after three of them is kept beside it."""
    every = small.every.model_copy(update={"held_out": 1, "save": 1})
    asked = small.model_copy(update={"every": every, "keep": 10, "ema": EmaConfig(kind=request.param)})
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert train(asked, tmp_path / "run", QUIET).step == 3
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "then")
    assert train(asked, tmp_path / "run", QUIET).finished
    return tmp_path / "run"


def test_a_model_of_a_checkpoint_is_the_one_of_then(run, tmp_path, capsys):
    for step, model in ((3, tmp_path / "then"), (6, run)):
        out = tmp_path / f"of {step}"
        assert main(["export", str(run), "--step", str(step), "--out", str(out)]) == 0
        made, expected = Pipeline.load(out), Pipeline.load(model)
        assert same(made.flow.state_dict(), expected.flow.state_dict())
        assert made.training == expected.training
        request = Request(count=1, steps=2)
        assert torch.equal(made.sample(request).pixels, expected.sample(request).pixels)
    assert f"of step 6: rectiflow sample '{tmp_path}/of 6'" in capsys.readouterr().out
    assert main(["export", str(run), "--step", "3", "--dtype", "float16", "--out", str(tmp_path / "half")]) == 0
    for name, weight in Pipeline.load(tmp_path / "half").flow.state_dict().items():
        assert torch.equal(weight, Pipeline.load(tmp_path / "then").flow.state_dict()[name].half().to(weight.dtype))


def test_the_best_is_that_of_the_least_held_out_loss(run, tmp_path):
    saved = Checkpoints(run / "checkpoints", 10)
    metrics = {step: saved.metric(step) for step in saved.steps()}
    assert len(metrics) == 6
    like = Pipeline.load(run).flow.state_dict()
    assert weights_at(run, "best", like)[1] == min(metrics, key=metrics.get)


def test_what_is_not_there_is_told(run, tmp_path, capsys):
    assert main(["export", str(run), "--step", "7", "--out", str(tmp_path / "out")]) == 2
    assert "has no checkpoint of step 7; expected one of 1, 2, 3, 4, 5, 6, or best." in capsys.readouterr().err
    flip(run / "checkpoints" / "step-00000002" / "__0_0.distcp")
    assert main(["export", str(run), "--step", "2", "--out", str(tmp_path / "out")]) == 2
    assert "step-00000002 cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_trains_no_flow_is_told(tmp_path):
    settings = ("steps=2", "batch=4", "data={set: digits, size: null}", "every={log: 1, held_out: 0, preview: 0}")
    train(resolve("vae", settings=settings), tmp_path / "run", QUIET)
    with pytest.raises(InputError, match="trains no flow"):
        weights_at(tmp_path / "run", 2, {})
