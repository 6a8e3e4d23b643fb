"""Where metrics go: the run's own lines, TensorBoard, and Weights & Biases by the calls that it gets."""

import json
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import resolve
from rectiflow.training.log import RunLog
from rectiflow.training.run import train
from rectiflow.training.sinks import (
    WANDB_ID_NAME,
    Lines,
    Sink,
    TensorBoard,
    WeightsAndBiases,
    check_sinks,
    open_sinks,
    read_records,
)


class FakeError(Exception):
    """`wandb.Error`."""


class FakeRun:
    def __init__(self, calls):
        self.calls = calls

    def define_metric(self, name, step_metric=None):
        self.calls.append(("define_metric", name, step_metric))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name that notes the calls it gets."""
    module = ModuleType("wandb")
    module.calls, module.Error, module.problem = [], FakeError, None

    def init(project, name, id, resume, dir, config, settings):
        module.calls.append(("init", project, name, id, resume, dir, config, settings))
        if module.problem:
            raise FakeError(module.problem)
        return FakeRun(module.calls)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def events(folder):
    """(step, value) by name, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_lines_keep_what_is_before_the_start_and_skip_torn_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 3.0}\n{"step": 4, "lo\n[1]\n{"step": true}\n{"step": 6, "loss": 1.0}\n{"ste')
    assert read_records(path) == [{"step": 2, "loss": 3.0}, {"step": 6, "loss": 1.0}]
    lines = Lines(path, 4)
    lines.write(5, {"loss": 2.0, "learning_rate": 1.23456789e-9})
    assert read_records(path) == [{"step": 2, "loss": 3.0}, {"step": 5, "loss": 2.0, "learning_rate": 1.234568e-9}]
    assert read_records(tmp_path) == read_records(tmp_path / "none") == []


def test_lines_that_the_disk_does_not_take_are_written_later(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path, 0)
    lines.write(1, {"loss": 1.0})
    aside = tmp_path / "elsewhere"
    path.rename(aside)
    path.mkdir()  # whatever is written now fails
    for step in (2, 3):
        with pytest.raises(OSError, match="directory"):
            lines.write(step, {"loss": 1.0})
    path.rmdir()
    aside.write_text(aside.read_text() + '{"step": 2, "l')  # as a full disk leaves it
    aside.rename(path)
    lines.write(4, {"loss": 1.0})
    lines.write(5, {"loss": 1.0})
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4, 5]


def test_tensorboard_reads_back_what_was_written_and_forgets_what_was_taken_back(tmp_path):
    first = TensorBoard(tmp_path, 0)
    for step in (2, 4, 6):
        first.write(step, {"loss": 1 / step})
    first.close()
    again = TensorBoard(tmp_path, 4)  # steps 5 and 6 were not saved
    again.write(6, {"loss": 7.0})
    again.close()
    assert events(tmp_path) == {"loss": [(2, 0.5), (4, 0.25), (6, 7.0)]}


def test_tensorboard_is_imported_only_where_it_is_used(tmp_path):
    code = (
        "import sys, rectiflow.training.run\n"
        "from rectiflow.training.sinks import open_sinks\nfrom pathlib import Path\n"
        "print('tensorboard' in sys.modules)\n"
        "[sink.close() for sink in open_sinks(['tensorboard'], Path(sys.argv[1]), 0, {})]\n"
        "print('tensorboard' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_wandb_gets_the_run_and_its_metrics(tmp_path, wandb):
    folder = tmp_path / "flowers"
    folder.mkdir()
    sink = WeightsAndBiases(folder, {"recipe": "digits"})
    sink.write(20, {"loss": 0.5})
    sink.write(20, {"held_out_loss": 0.6})
    sink.close()
    kept = (folder / WANDB_ID_NAME).read_text().strip()
    assert len(kept) == 8
    name = f"{tmp_path.name}/flowers"
    assert wandb.calls == [
        ("init", "rectiflow", name, kept, "allow", str(folder), {"recipe": "digits"}, {"console": "off"}),
        ("define_metric", "*", "step"),
        ("log", {"step": 20, "loss": 0.5}),
        ("log", {"step": 20, "held_out_loss": 0.6}),
        ("finish",),
    ]


def test_wandb_goes_on_in_the_same_run(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for start in (0, 10):
        for sink in open_sinks(("wandb",), tmp_path, start, {}):
            sink.close()
    begun = [call for call in wandb.calls if call[0] == "init"]
    assert len({call[3] for call in begun}) == 1
    assert [call[1] for call in begun] == ["mine", "mine"]
    (tmp_path / "other").mkdir()
    open_sinks(("wandb",), tmp_path / "other", 0, {})
    assert wandb.calls[-2][3] != begun[0][3]


def test_wandb_missing_or_not_willing_is_one_line(tmp_path, monkeypatch, wandb):
    wandb.problem = "api_key not configured (no-tty)\n  a trace"
    with pytest.raises(InputError, match=r"did not start \(api_key not configured \(no-tty\)\).*WANDB_MODE=offline"):
        open_sinks(("wandb",), tmp_path, 0, {})
    check_sinks(("tensorboard", "wandb"))
    # W&B leaves a folder of its own name behind, which Python takes for a package.
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(InputError, match="not installed"):
        check_sinks(("wandb",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb, or set watch"):
        check_sinks(("wandb",))
    check_sinks(("tensorboard",))


class Broken(Sink):
    def __init__(self):
        self.written = self.closed = 0

    def write(self, step, values):
        self.written += 1
        raise RuntimeError("the server is gone")

    def close(self):
        self.closed += 1


def test_a_sink_that_fails_is_told_of_once_and_left_out(tmp_path, capsys):
    sink = Broken()
    with RunLog(tmp_path, 0, 3, Console(force_terminal=False, width=200), [sink]) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0})
    assert capsys.readouterr().out.count("Broken takes no metrics (the server is gone)") == 1
    assert (sink.written, sink.closed) == (1, 0)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert "server is gone" in json.loads((tmp_path / "notes.jsonl").read_text())["words"]


def test_what_is_watched_changes_no_weight(small, tmp_path, wandb):
    runs = {"both": ("tensorboard", "wandb"), "none": ()}
    for name, watch in runs.items():
        config = small.model_copy(update={"watch": watch})
        assert train(config, tmp_path / name, Console(quiet=True)).finished
    assert not list((tmp_path / "none").glob("events*"))
    seen = events(tmp_path / "both")
    lines = read_records(tmp_path / "both" / "metrics.jsonl")
    for name in ("loss", "weight_norm", "held_out_loss"):
        written = [(r["step"], r[name]) for r in lines if name in r]
        assert seen[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in written]
    logged = [call[1] for call in wandb.calls if call[0] == "log"]
    assert [values["step"] for values in logged] == [r["step"] for r in lines]
    both, none = (load_file(tmp_path / name / "model" / "flow.safetensors") for name in runs)
    assert all(torch.equal(both[key], none[key]) for key in both)


def test_one_name_stands_for_a_list():
    assert resolve("digits", settings=["watch=wandb"]).watch == ("wandb",)
