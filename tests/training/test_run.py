"""Whole runs, small ones: begun, stopped, gone on with, refused."""

import json
import signal
import time

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.conditioning.config import TextConfig
from rectiflow.data.builtin import digits
from rectiflow.data.loader import Loader
from rectiflow.networks.config import Inputs, fitted
from rectiflow.pipeline import Pipeline, Request
from rectiflow.recipes.registry import resolve, with_settings
from rectiflow.training import run as run_module
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.log import last_metrics
from rectiflow.training.run import describe_run, train
from rectiflow.training.run_folder import former_run, read_run
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.conftest import SMALL, same

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def state(config, folder):
    """Everything that the newest checkpoint of a run holds."""
    trainer = Trainer(FlowStage(config, digits(), CPU), config, folder, CPU)
    trainer.restore(print)
    return trainer._state()


def stop_at(monkeypatch, step):
    """Send a Ctrl-C while `step` is trained."""
    original = Trainer._train

    def interrupted(self, current):
        if current == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, current)

    monkeypatch.setattr(Trainer, "_train", interrupted)


def test_a_run_folder_holds_all(small, tmp_path):
    outcome = train(small, tmp_path / "run", QUIET)
    assert (outcome.step, outcome.finished, outcome.trained) == (6, True, True)
    network = fitted(small.network, Inputs(1, 10))
    assert read_run(tmp_path / "run") == small.model_copy(update={"network": network})  # nothing is left open
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == [3, 6]
    assert Pipeline.load(tmp_path / "run").training == {"recipe": "digits", "step": 6, "steps": 6}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [3, 6]
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    facts = describe_run(tmp_path / "run")
    assert (facts["recipe"], facts["checkpoint_step"]) == ("digits", 6)
    assert facts["last_metrics"]["step"] == 6


@pytest.mark.parametrize("step", [0, 2, 4])
def test_interrupted_and_resumed_is_never_stopped_bit_for_bit(small, tmp_path, monkeypatch, step):
    train(small, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        outcome = train(small, tmp_path / "stopped", QUIET)
    assert (outcome.step, outcome.finished) == (step + 1, False)
    assert Pipeline.load(tmp_path / "stopped").training["step"] == step + 1
    outcome = train(read_run(tmp_path / "stopped"), tmp_path / "stopped", QUIET)
    assert outcome.finished
    whole, resumed = (state(small, tmp_path / name) for name in ("whole", "stopped"))
    assert whole["step"] == 6
    assert same(whole, resumed)
    weights = [(tmp_path / name / "model" / "flow.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_another_data_order_would_be_noticed(small, tmp_path):
    """The comparison above can fail: another seed gives other weights."""
    train(small, tmp_path / "a", QUIET)
    other = small.model_copy(update={"seed": 1})
    train(other, tmp_path / "b", QUIET)
    assert not same(state(small, tmp_path / "a"), state(other, tmp_path / "b"))


def test_metrics_after_the_checkpoint_are_dropped_on_resume(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        train(small, tmp_path, QUIET)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 99}\n{"step": 6, "lo')  # a crash after the checkpoint, in mid-line
    train(small, tmp_path, QUIET)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 99 not in [line.get("loss") for line in lines]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_a_finished_run_is_not_trained_again(small, tmp_path):
    train(small, tmp_path, QUIET)
    before = (tmp_path / "model" / "flow.safetensors").stat().st_mtime_ns
    assert not train(small, tmp_path, QUIET).trained
    assert (tmp_path / "model" / "flow.safetensors").stat().st_mtime_ns == before


def test_a_lost_model_is_written_again(small, tmp_path):
    train(small, tmp_path, QUIET)
    weights = (tmp_path / "model" / "flow.safetensors").read_bytes()
    (tmp_path / "model" / "config.json").unlink()
    train(small, tmp_path, QUIET)
    assert (tmp_path / "model" / "flow.safetensors").read_bytes() == weights
    Pipeline.load(tmp_path)


def test_other_settings_are_refused_by_name(small, tmp_path):
    train(small, tmp_path, QUIET)
    other = resolve("digits", settings=[*SMALL, "optimiser.lr=0.5", "batch=9"])
    with pytest.raises(InputError, match=r"batch, optimiser.lr; batch is 8 there, 9 here.*--resume"):
        train(other, tmp_path, QUIET)


def test_another_recipe_is_refused(small, tmp_path):
    train(small, tmp_path, QUIET)
    values = yaml.safe_load((tmp_path / "run.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**values, "recipe": "portraits"}))
    with pytest.raises(InputError, match="a run of recipe portraits, not digits"):
        train(small, tmp_path, QUIET)


def test_settings_that_cannot_be_trained_leave_no_run(small, tmp_path):
    config = small.model_copy(update={"network": small.network.model_copy(update={"patch": 3})})
    with pytest.raises(InputError, match="patch of 3 does not divide 8×8"):
        train(config, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
    assert train(small, tmp_path / "run", QUIET).finished


@pytest.mark.parametrize(("name", "value"), [("classes", 0), ("channels", 3)])
def test_a_choice_left_open_differs_from_nothing_but_a_choice_made_does(small, tmp_path, name, value):
    train(small, tmp_path, QUIET)
    assert not train(small, tmp_path, QUIET).trained
    assert not train(read_run(tmp_path), tmp_path, QUIET).trained
    other = small.model_copy(update={"network": small.network.model_copy(update={name: value})})
    with pytest.raises(InputError, match=rf"other settings \(network.{name}; "):
        train(other, tmp_path, QUIET)


def test_null_in_place_of_settings_is_a_choice(small, tmp_path):
    """Else a run with captions, or in latents, could be gone on with as one without."""
    train(small, tmp_path, QUIET)
    path = tmp_path / "run.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "text": TextConfig().model_dump(mode="json")}))
    with pytest.raises(InputError, match=r"other settings \(text"):
        train(small, tmp_path, QUIET)


UNET = "network={kind: unet, width: 8, multipliers: [1, 2], blocks: 1, attention: [2], heads: 2, dropout: 0.2}"


def test_a_unet_is_trained_stopped_and_gone_on_with_bit_for_bit(tmp_path, monkeypatch):
    """With dropout: what it draws is a function of the step too."""
    config = resolve("digits", settings=[UNET, *SMALL[1:]])
    train(config, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert not train(config, tmp_path / "stopped", QUIET).finished
    assert train(config, tmp_path / "stopped", QUIET).finished
    whole, resumed = (state(config, tmp_path / name) for name in ("whole", "stopped"))
    assert whole["step"] == 6
    assert same(whole, resumed)
    pipeline = Pipeline.load(tmp_path / "stopped")
    assert pipeline.network_config == read_run(tmp_path / "stopped").network
    assert pipeline.sample(Request(["3"], steps=2)).pixels.shape == (1, 1, 8, 8)


def test_a_strange_folder_is_left_alone(small, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a run"):
        train(small, tmp_path, QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_resolved_precision_is_written_and_kept(small, tmp_path, monkeypatch):
    asked = small.model_copy(update={"precision": "auto"})
    monkeypatch.setattr(run_module, "resolve_precision", lambda *_: ("bfloat16", "measured"))
    train(asked, tmp_path, QUIET)
    assert read_run(tmp_path).precision == "bfloat16"
    monkeypatch.setattr(run_module, "resolve_precision", lambda name, *_: (name, ""))
    assert not train(asked, tmp_path, QUIET).trained  # "auto" is no difference from what it chose


def test_memory_that_is_full_is_one_line_and_keeps_the_last_good_model(small, tmp_path, monkeypatch):
    original = Trainer._train

    def full(self, step):
        if step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, step)

    monkeypatch.setattr(Trainer, "_train", full)
    with pytest.raises(InputError, match=r"no memory left in step 5.*after step 3, is in .*model.*accumulate=2"):
        train(small, tmp_path / "run", QUIET)
    assert describe_run(tmp_path / "run")["checkpoint_step"] == 3


def test_a_full_disk_keeps_the_previous_checkpoint(small, tmp_path, monkeypatch):
    original = torch.distributed.checkpoint.FileSystemWriter.write_data

    def full(self, *args, **kwargs):
        if len(Checkpoints(tmp_path / "checkpoints", 2).steps()) == 1:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.distributed.checkpoint.FileSystemWriter, "write_data", full)
    with pytest.raises(InputError, match=r"No space left on device.*kept"):
        train(small, tmp_path, QUIET)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    assert train(small, tmp_path, QUIET).finished
    train(small, tmp_path.with_name("whole"), QUIET)
    assert same(state(small, tmp_path), state(small, tmp_path.with_name("whole")))


def test_a_torn_checkpoint_is_named_and_passed_over(small, tmp_path, capsys):
    train(small, tmp_path, QUIET)
    whole = state(small, tmp_path)
    for file in (tmp_path / "checkpoints" / "step-00000006").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "model" / "config.json").unlink()
    assert train(small, tmp_path, Console()).finished
    said = " ".join(capsys.readouterr().out.split())
    assert "step-00000006 is passed over" in said
    assert "step 3 of 6" in said
    assert same(state(small, tmp_path), whole)


def test_two_runs_on_one_folder(small, tmp_path):
    with run_module.alone_in(tmp_path / "run"):
        with pytest.raises(InputError, match="another process is training in"):
            train(small, tmp_path / "run", QUIET)
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    assert train(small, tmp_path / "run", QUIET).finished


def test_early_previews_double_until_the_usual_ones(small, tmp_path):
    every = small.every.model_copy(update={"preview": 4, "first_preview": 1})
    train(small.model_copy(update={"every": every}), tmp_path / "run", QUIET)
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == [f"{step:08d}.png" for step in (1, 2, 4, 6)]


def test_what_was_learned_is_kept_when_the_data_are_gone(small, tmp_path, monkeypatch):
    original = FlowStage.loss

    def gone(self, step, part=slice(None), turn=""):
        if step == 4:
            raise InputError("the folder has changed.")
        return original(self, step, part)

    with monkeypatch.context() as patch:
        patch.setattr(FlowStage, "loss", gone)
        with pytest.raises(InputError, match="the folder has changed"):
            train(small, tmp_path / "run", QUIET)
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == [3, 4]
    assert train(small, tmp_path / "run", QUIET).finished
    train(small, tmp_path / "whole", QUIET)
    assert same(state(small, tmp_path / "run"), state(small, tmp_path / "whole"))


def test_the_time_that_data_take_is_logged(small, tmp_path, monkeypatch):
    """A loader that sleeps half of the time is seen to."""
    original = Loader.__call__

    def slow(self, step, part=slice(None)):
        began = time.perf_counter()
        batch = original(self, step, part)
        time.sleep(0.05)
        self.waited += time.perf_counter() - began
        return batch

    train(small, tmp_path / "quick", QUIET)
    monkeypatch.setattr(Loader, "__call__", slow)
    train(small, tmp_path / "slow", QUIET)
    quick, late = (last_metrics(tmp_path / name / "metrics.jsonl")["waiting_for_data"] for name in ("quick", "slow"))
    assert quick < 0.3 < late < 1


@pytest.mark.parametrize(("prediction", "said"), [("velocity", True), ("data", False)])
def test_a_prediction_that_ve_makes_hard_is_pointed_out(small, tmp_path, capsys, prediction, said):
    flow = small.flow.model_copy(update={"schedule": "ve", "prediction": prediction})
    train(small.model_copy(update={"flow": flow}), tmp_path, Console())
    assert ("flow.prediction=data learns" in capsys.readouterr().out) is said


def test_how_a_run_is_carried_out_may_change(small, tmp_path, capsys):
    train(small, tmp_path / "whole", QUIET)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)
        train(small.model_copy(update={"keep": 3}), tmp_path / "run", QUIET)
    resume = ["train", "--resume", str(tmp_path / "run"), "--set"]
    assert main([*resume, "accumulate=2", "batch=4"]) == 2
    assert "other settings (batch; batch is 8 there, 4 here)" in " ".join(capsys.readouterr().err.split())
    assert main([*resume, "accumulat=2"]) == 2
    assert "Did you mean 'accumulate'" in " ".join(capsys.readouterr().err.split())
    assert main([*resume, "accumulate=2", "every.log=1", "data.workers=0", "keep=1"]) == 0
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 6]
    found, wanted = (load_file(tmp_path / name / "model" / "flow.safetensors") for name in ("run", "whole"))
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in wanted)
    assert read_run(tmp_path / "run").accumulate == 2  # for the starts after that one too


@pytest.mark.parametrize(("recipe", "stage"), [("latent", "train"), ("clips", "train"), ("clips", "pictures")])
def test_so_may_how_each_stage_before_it_is(tmp_path, recipe, stage):
    begun = resolve(recipe)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(begun.model_dump(mode="json")))
    now = with_settings(begun, [f"latent.{stage}.accumulate=4", f"latent.{stage}.every.save=7"])
    assert former_run(begun, tmp_path) == begun
    assert former_run(now, tmp_path) == now != begun
    with pytest.raises(InputError, match=rf"other settings \(latent\.{stage}\.optimiser\.lr; "):
        former_run(with_settings(now, [f"latent.{stage}.optimiser.lr=0.5"]), tmp_path)
