"""Steps that would do harm: not taken, gone back from, and at last given up."""

import math
import signal

import pytest
import torch
from rich.console import Console

from rectiflow.base.errors import InputError
from rectiflow.pipeline import Pipeline
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import GuardConfig
from rectiflow.training.guard import Guard
from rectiflow.training.run import train
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.conftest import same
from tests.training.test_run import QUIET, state, stop_at


def poison(monkeypatch, bad, factor=math.nan):
    """Multiply the loss of the calls that `bad` chooses, of (step, how often the run went back)."""
    original = FlowStage.loss

    def loss(self, step, part=slice(None), turn=""):
        return original(self, step, part, turn) * (factor if bad(step, self._detour) else 1)

    monkeypatch.setattr(FlowStage, "loss", loss)


def longer(config, **guard):
    return config.model_copy(update={"steps": 12, "guard": GuardConfig(**{"skips": 2, "rollbacks": 2, **guard})})


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(small, tmp_path, monkeypatch, capsys, kind):
    """The weights are those of a run whose optimiser stood still in that step, and all else goes on."""
    if kind == "loss":
        poison(monkeypatch, lambda step, _: step == 4)
    else:
        original = FlowStage.loss

        def loss(self, step, part=slice(None), turn=""):
            value = original(self, step, part, turn)
            if step == 4:
                value.register_hook(lambda gradient: gradient * math.inf)
            return value

        monkeypatch.setattr(FlowStage, "loss", loss)
    assert train(small, tmp_path / "a", Console()).finished
    said = " ".join(capsys.readouterr().out.split())
    assert "step 5 was not taken: loss" in said
    assert said.count("was not taken") == 1
    found = state(small, tmp_path / "a")
    assert all(value.isfinite().all() for value in found["module"].values())
    steps = {float(part["step"]) for part in found["optimiser"]["state"].values()}
    assert steps == {5.0}  # of 6
    monkeypatch.undo()
    train(small, tmp_path / "whole", QUIET)
    assert not same(found["module"], state(small, tmp_path / "whole")["module"])


def test_bad_steps_in_a_row_lead_back_and_by_another_order(small, tmp_path, monkeypatch, capsys):
    """Steps 8 and 9 are bad in the first order only: the run goes back to 6, and ends well on other data."""
    asked, seen = longer(small), []
    poison(monkeypatch, lambda step, detour: detour == 0 and step in (7, 8))
    original = FlowStage._batch

    def batch(self, step, part):
        found = original(self, step, part)
        seen.append((step, self._detour, found[0].clone()))
        return found

    monkeypatch.setattr(FlowStage, "_batch", batch)
    assert train(asked, tmp_path, Console()).finished
    assert "back to step 6, with the data in another order (1 of 2)" in " ".join(capsys.readouterr().out.split())
    trained = [(step, detour) for step, detour, _ in seen]
    assert trained[-6:] == [(step, 1) for step in range(6, 12)]
    first, again = ([x for step, d, x in seen if (step, d) == (6, detour)][-1] for detour in (0, 1))
    assert not torch.equal(first, again)
    assert state(asked, tmp_path)["guard"]["counts"].tolist() == [0, 1, -1]


def test_a_detour_is_resumed_bit_for_bit(small, tmp_path, monkeypatch):
    asked = longer(small)
    poison(monkeypatch, lambda step, detour: detour == 0 and step in (7, 8))
    train(asked, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        original = Trainer._train

        def stopped(self, step):
            if step == 10:
                raise KeyboardInterrupt
            return original(self, step)

        patch.setattr(Trainer, "_train", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(asked, tmp_path / "cut", QUIET)
    assert train(asked, tmp_path / "cut", QUIET).finished
    assert same(state(asked, tmp_path / "whole"), state(asked, tmp_path / "cut"))


def test_what_stays_bad_ends_with_the_reason(small, tmp_path, monkeypatch):
    asked = longer(small)
    poison(monkeypatch, lambda step, _: step >= 7)
    with pytest.raises(InputError, match=r"loss nan.*2 steps in a row were bad again after 2 returns.*after step 6"):
        train(asked, tmp_path, QUIET)
    assert Pipeline.load(tmp_path).training["step"] == 6
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [3, 6]
    monkeypatch.undo()
    assert train(asked, tmp_path, QUIET).finished  # the cause mended, it goes on


def test_nothing_saved_yet_is_no_reason_to_lose_what_was_learned(small, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda step, detour: detour == 0)
    assert train(longer(small), tmp_path, Console()).finished
    assert "on from here, for nothing is saved yet" in " ".join(capsys.readouterr().out.split())


def test_nothing_is_saved_amid_bad_steps(small, tmp_path, monkeypatch):
    """Step 6 is when a run saves, and 5 and 6 are bad: what led to them may be in the weights."""
    asked, saved = longer(small, skips=3), []
    original = Trainer._write
    monkeypatch.setattr(Trainer, "_write", lambda self: (saved.append(self.step), original(self)))
    poison(monkeypatch, lambda step, _: step in (4, 5))
    assert train(asked, tmp_path, QUIET).finished
    assert saved == [3, 9, 12]


def test_where_no_good_step_comes_of_a_return_the_next_goes_further_back(small, tmp_path, monkeypatch, capsys):
    """What was gone back to first is put aside, and the model is again that of what is gone on from."""
    asked, models, original = longer(small), [], FlowStage.save
    poison(monkeypatch, lambda step, detour: detour < 2 and step >= 6)
    monkeypatch.setattr(
        FlowStage,
        "save",
        lambda self, module, folder, step: (models.append(step), original(self, module, folder, step)),
    )
    assert train(asked, tmp_path, Console()).finished
    assert models == [3, 6, 3, 6, 9, 12]
    assert (tmp_path / "checkpoints" / "step-00000006.bad").is_dir()
    said = " ".join(capsys.readouterr().out.split())
    assert "back to step 6, with the data in another order (1 of 2)" in said
    assert "back to step 3, with the data in another order (2 of 2)" in said


def test_stopped_after_it_went_further_back_it_goes_on_as_if_never_stopped(small, tmp_path, monkeypatch):
    asked, original = longer(small), Trainer._train
    poison(monkeypatch, lambda step, detour: detour < 2 and step >= 6)
    train(asked, tmp_path / "whole", QUIET)

    def stopped(self, step):
        if step == 4 and self.stepper.guard.detours == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", stopped)
        assert train(asked, tmp_path / "cut", QUIET).step == 5
    assert train(asked, tmp_path / "cut", QUIET).finished
    assert same(state(asked, tmp_path / "whole"), state(asked, tmp_path / "cut"))


def test_a_preview_that_cannot_be_written_ends_nothing(small, tmp_path, monkeypatch, capsys):
    def full(*given):
        raise InputError("could not write x.png: No space left on device.")

    monkeypatch.setattr("rectiflow.training.trainer.save_png", full)
    asked = small.model_copy(update={"every": small.every.model_copy(update={"preview": 3})})
    assert train(asked, tmp_path, Console()).finished
    assert "step 3, training goes on: could not write x.png" in " ".join(capsys.readouterr().out.split())


def test_a_jump_is_told_from_what_losses_do():
    guard = Guard(GuardConfig(spike=20))
    draws = torch.randn(300, generator=torch.Generator().manual_seed(0)).mul(0.05).exp().tolist()
    assert not any(guard.complaint(loss, 1.0) or guard.good(loss) for loss in draws)
    low, median, high = torch.tensor(draws[-200:]).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    bar = median + 20 * (high - low)
    assert not guard.complaint(0.97 * bar, 1.0)
    assert "far above" in guard.complaint(1.03 * bar, 1.0)
    assert not guard.complaint(1.03 * bar, 1.0, main=False)
    assert not Guard(GuardConfig(spike=0)).complaint(1e9, 1.0)
    guard.forget()
    assert not guard.complaint(1.03 * bar, 1.0)


@pytest.mark.parametrize("count", [3, 250])
def test_a_guard_remembers(count):
    guard = Guard(GuardConfig())
    for number in range(count):
        guard.good(1 + number / 100)
    guard.bad()
    guard.turn_back()
    for number in range(count):
        guard.good(2 + number / 100)
    guard.bad()
    other = Guard(GuardConfig())
    other.load(guard.state())
    assert (other.in_a_row, other.detours) == (1, 1)
    assert other._losses == guard._losses
    assert len(other._losses) == min(count, 200)


def test_a_jump_in_a_run_is_not_taken(small, tmp_path, monkeypatch, capsys):
    asked = longer(small).model_copy(update={"steps": 80, "every": small.every.model_copy(update={"save": 80})})
    poison(monkeypatch, lambda step, _: step == 70, factor=1e4)
    train(asked, tmp_path, Console())
    assert "step 71 was not taken: loss" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("steps", [[7], [6, 7]])
def test_stopped_before_it_goes_back_it_goes_back_as_far(small, tmp_path, monkeypatch, steps):
    """To the checkpoint that a run never stopped would go back to, not to what was saved when it was stopped."""
    asked = longer(small)
    poison(monkeypatch, lambda step, detour: detour == 0 and step in (7, 8))
    train(asked, tmp_path / "whole", QUIET)
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert train(asked, tmp_path / "cut", QUIET).step == step + 1
    assert (tmp_path / "cut" / "checkpoints" / "step-00000006").is_dir()
    assert train(asked, tmp_path / "cut", QUIET).finished
    assert same(state(asked, tmp_path / "whole"), state(asked, tmp_path / "cut"))


def test_stopped_while_bad_it_goes_on_as_if_never_stopped(small, tmp_path, monkeypatch):
    """The count of bad steps in a row is kept too."""
    asked = longer(small, skips=3)
    poison(monkeypatch, lambda step, detour: detour == 0 and step in (7, 8, 9))
    train(asked, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert not train(asked, tmp_path / "cut", QUIET).finished
    assert train(asked, tmp_path / "cut", QUIET).finished
    left, right = (state(asked, tmp_path / name) for name in ("whole", "cut"))
    assert left["guard"]["counts"].tolist() == right["guard"]["counts"].tolist() == [0, 1, -1]
    assert same(left, right)


@pytest.mark.parametrize("steps", [[9], [7, 9]])
def test_stopped_again_it_goes_as_far_back_twice(small, tmp_path, monkeypatch, steps):
    """No good step comes of the first return; what was saved when it was stopped is no place to go back to, nor leaves
    fewer of them.
    """
    asked = longer(small)
    poison(monkeypatch, lambda step, detour: detour < 2 and step >= 9)
    train(asked, tmp_path / "whole", QUIET)
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert not train(asked, tmp_path / "cut", QUIET).finished
    assert train(asked, tmp_path / "cut", QUIET).finished
    assert same(state(asked, tmp_path / "whole"), state(asked, tmp_path / "cut"))


def test_what_was_saved_on_a_branch_that_is_left_is_put_aside(small, tmp_path, monkeypatch):
    """Stopped after step 8, the run goes back to 6, and is stopped at once: it goes on from 7, and not from 8."""
    asked = longer(small)
    poison(monkeypatch, lambda step, detour: detour == 0 and step in (8, 9))
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert train(asked, tmp_path, QUIET).step == 8
    original = Trainer._train

    def stopped(self, step):
        if self.stepper.guard.detours and step == 6:
            signal.raise_signal(signal.SIGINT)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", stopped)
        assert train(asked, tmp_path, QUIET).step == 7
    assert Checkpoints(tmp_path / "checkpoints", 2).steps()[-1] == 7
    assert Pipeline.load(tmp_path).training["step"] == 7
