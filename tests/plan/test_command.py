"""`rectiflow plan` as a user meets it."""

import json

import pytest
import torch

from rectiflow.__main__ import main
from rectiflow.cli.plan import size, span
from rectiflow.plan import probe
from rectiflow.plan.measured import Rehearsal
from rectiflow.plan.plan import plan, too_big
from rectiflow.recipes.registry import resolve


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digitz"], "unknown recipe 'digitz'. Did you mean 'digits'?"),
        ([], "expected a recipe: digits"),
        (["digits", "--set", "network.widht=3"], "widht"),
        (["digits", "--gpu", "b4090"], "unknown GPU 'b4090'. Did you mean '4090'?"),
        (["digits", "--utilisation", "1.5"], "(0, 1], received 1.5"),
        (["digits", "--gpu", "h100", "--gpus", "0"], "--gpus must be at least 1"),
        (["digits", "--seconds", "0"], "--seconds must be above 0"),
        (["digits", "--autoencoder", "x"], "takes no --autoencoder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_rehearsed(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(probe, "in_a_child", lambda *asked: pytest.fail("rehearsed"))
    assert main(["plan", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_no_data_is_told_by_the_rehearsal_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "folder"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("rectiflow: ")
    assert told.count("\n") == 1
    assert "data" in told
    assert not list(tmp_path.iterdir())


def test_tables_and_json_say_the_same(stage, capsys, monkeypatch):
    monkeypatch.setattr(probe, "in_a_child", lambda run, events, seconds: Rehearsal(stages=(stage(run.batch),)))
    asked = ["plan", "digits", "--set", "steps=100", "--gpu", "h100", "--gpus", "4"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["there"][0]["count"] == 4
    assert told["here"]["stages"][0]["parameters"] == 1000
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "measured on this machine" in shown
    assert "estimate for 4 × NVIDIA H100" in shown
    assert "not measured" in shown
    assert size(told["here"]["stages"][0]["disk"]) in shown


def test_without_a_probe_nothing_is_measured_and_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(probe, "in_a_child", lambda *asked: pytest.fail("rehearsed"))
    asked = ["plan", "digits", "--no-probe", "--set", "network.depth=1", "--gpu", "h100"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["here"] is None
    assert told["there"][0]["from_shapes"]
    assert told["outline"]["stages"][0]["flops"] > 0
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "digits, from shapes: an estimate, nothing was measured" in shown
    assert "estimate for NVIDIA H100 SXM 80 GB, nothing was measured" in shown
    assert "measured on this machine" not in shown
    assert size(told["outline"]["stages"][0]["states"]) in shown


@pytest.fixture
def crowded(monkeypatch):
    """A machine on which the digits' network is too big, and a rehearsal that must not be begun."""
    monkeypatch.setattr(probe, "in_a_child", lambda *asked: pytest.fail("rehearsed"))
    monkeypatch.setattr("rectiflow.plan.plan._LITTLE", 0)
    monkeypatch.setattr("rectiflow.base.machine.available", lambda device: 10**6)


def test_what_is_too_big_for_here_is_told_from_shapes_of_a_gpu(crowded, capsys):
    asked = ["plan", "digits", "--set", "network.depth=1"]
    assert main([*asked, "--gpu", "h100"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be rehearsed here: 16 samples take" in shown
    assert "estimate for NVIDIA H100 SXM 80 GB, nothing was measured" in shown
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "Name a GPU for an estimate from shapes: --gpu h100." in told
    assert told.count("\n") == 1


def test_what_would_take_an_hour_is_told_from_shapes(crowded, monkeypatch):
    monkeypatch.setattr("rectiflow.base.machine.available", lambda device: 10**12)
    monkeypatch.setattr("rectiflow.training.watch.matrix_rate", lambda device, precision: 1e6)
    found = plan(resolve("digits", settings=["network.depth=1"]), ["h100"])
    assert "a step of 16 samples would take" in found.why
    assert found.outline is not None


@pytest.mark.parametrize(
    ("asked", "lack", "taken"),
    [
        ("auto", "this CPU has no bfloat16 arithmetic", "float32"),
        ("auto", "", "bfloat16"),
        ("bfloat16", "this CPU has no bfloat16 arithmetic", "bfloat16"),
        ("float32", "", "float32"),
    ],
)
def test_what_would_take_an_hour_is_told_by_the_rate_of_the_run_s_precision(asked, lack, taken, crowded, monkeypatch):
    rated = []

    def rate(device, precision):
        rated.append(precision)
        return 1e15

    monkeypatch.setattr("rectiflow.base.machine.available", lambda device: 10**12)
    monkeypatch.setattr("rectiflow.training.watch.matrix_rate", rate)
    monkeypatch.setattr("rectiflow.plan.plan.lacks_bfloat16", lambda device: lack)
    config = resolve("digits", settings=["network.depth=1", f"precision={asked}"])
    assert too_big(config, 10**12, torch.device("cpu")) == ""
    assert rated == [taken]


def test_numbers_in_words():
    assert [span(s) for s in (0.0123, 1.25, 99.4, 120, 7200, 300_000)] == [
        "12 ms",
        "1.2 s",
        "99.4 s",
        "2.0 min",
        "2.0 h",
        "3.5 days",
    ]
    assert [size(b) for b in (1500, 25e6, 1.5e9, 3e12)] == ["1.5 kB", "25 MB", "1.5 GB", "3.0 TB"]
