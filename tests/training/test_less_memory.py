"""Runs that do not fit into memory, wherever it is met: one line, with a setting that takes less."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.memory_full import MemoryFull, told_if_full
from rectiflow.cli.info import Info
from rectiflow.data.builtin import digits
from rectiflow.recipes.registry import resolve
from rectiflow.training import run as run_module
from rectiflow.training.config import ParallelConfig
from rectiflow.training.less_memory import smaller_parts
from rectiflow.training.precision import resolve_precision
from rectiflow.training.run import train
from rectiflow.training.stages import FlowStage
from rectiflow.training.status import status_of
from tests.conftest import SMALL

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_IS_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


def fails(error):
    def failing(*given):
        raise error

    return failing


def at_step(patch, step, error):
    """Memory runs out when the loss of a step is asked for, not before."""
    original = FlowStage.loss

    def loss(self, current, part=slice(None), turn=""):
        if current == step:
            raise error
        return original(self, current, part, turn)

    patch.setattr(FlowStage, "loss", loss)


@pytest.mark.parametrize("error", [GPU_IS_FULL, CPU_IS_FULL, MemoryError()], ids=["GPU", "CPU", "Python"])
def test_a_run_that_does_not_fit_does_not_begin(tmp_path, monkeypatch, capsys, error):
    at_step(monkeypatch, 5, error)
    assert main(["train", "digits", "--run", str(tmp_path / "run"), "--set", *SMALL]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cpu had no memory left for a step of this run. Take a batch in more parts: the same command with" in said
    assert said.endswith("--set accumulate=2\n")
    assert not (tmp_path / "run").exists()


def test_a_full_memory_of_the_cpu_in_a_step_is_one_line_too(small, tmp_path, monkeypatch):
    run = tmp_path / "run"
    at_step(monkeypatch, 4, CPU_IS_FULL)
    with pytest.raises(InputError, match=rf"no memory left.*step 3, is in .*--resume {run} --set accumulate=2"):
        train(small, run, QUIET)
    assert "no memory left" in status_of(run).reason


@pytest.mark.parametrize("what", ["held_out", "preview"])
def test_so_is_one_between_steps(small, tmp_path, monkeypatch, what):
    monkeypatch.setattr(FlowStage, what, fails(GPU_IS_FULL))
    every = small.every.model_copy(update={"preview": 3})
    with pytest.raises(InputError, match=r"after step 3: training stopped; none was saved.*every\.preview=0"):
        train(small.model_copy(update={"every": every}), tmp_path / "run", QUIET)
    assert status_of(tmp_path / "run").state == "failed"
    assert "every.preview=0" in status_of(tmp_path / "run").reason


def test_a_run_is_tried_in_the_precision_that_it_trains_in(small, tmp_path, monkeypatch):
    seen = []

    def loss(self, step, part=slice(None), turn=""):
        seen.append(torch.is_autocast_enabled("cpu"))
        raise GPU_IS_FULL

    monkeypatch.setattr(FlowStage, "loss", loss)
    for precision in ("bfloat16", "float32"):
        with pytest.raises(InputError, match="no memory left"):
            train(small.model_copy(update={"precision": precision}), tmp_path / "run", QUIET)
    assert seen == [True, False]


def test_a_run_in_shards_is_tried_by_one_sample(small, tmp_path, monkeypatch):
    """The process that tries it has all weights, as none has afterwards."""
    tried = []
    monkeypatch.setattr(run_module, "_probe", lambda stage, config, part: tried.append(range(8)[part]))
    data = digits()
    for parallel in (ParallelConfig(kind="fsdp"), ParallelConfig()):
        config = small.model_copy(update={"parallel": parallel})
        stage = FlowStage(config, data, CPU)
        run_module._settled(stage, None, tmp_path, CPU, data, None, None)
    assert [len(part) for part in tried] == [1, 8]


def test_a_precision_that_does_not_fit_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def step():
        if not torch.is_autocast_enabled("cpu"):
            raise GPU_IS_FULL

    precision, reason = resolve_precision("auto", CPU, step)
    assert precision == "bfloat16"
    assert "float32 does not fit, bfloat16 0 ms" in reason
    assert resolve_precision("auto", CPU, fails(CPU_IS_FULL))[0] == "bfloat16"
    with pytest.raises(RuntimeError, match="another"):
        resolve_precision("auto", CPU, fails(RuntimeError("another")))


def test_parts_are_never_more_than_samples(small, tmp_path, monkeypatch):
    for accumulate, wanted in ((1, "accumulate=2"), (3, "accumulate=6"), (5, "accumulate=8"), (8, "as small as they")):
        assert wanted in smaller_parts(small.model_copy(update={"accumulate": accumulate}), tmp_path)
    monkeypatch.setattr(ranks, "world", lambda: 4)
    assert "as small as they" in smaller_parts(small.model_copy(update={"accumulate": 2}), tmp_path)


@pytest.mark.parametrize(
    ("stage", "setting"), [("autoencoder", "latent.train"), ("autoencoder-of-pictures", "latent.pictures")]
)
def test_a_stage_goes_on_by_the_run_that_it_belongs_to(small, tmp_path, stage, setting):
    run = tmp_path / "run"
    run.mkdir()
    assert smaller_parts(small, run / stage).endswith("the same command with --set accumulate=2")
    (run / "run.yaml").touch()
    assert smaller_parts(small, run / stage).endswith(f"rectiflow train --resume {run} --set {setting}.accumulate=2")
    assert smaller_parts(small, run).endswith(f"rectiflow train --resume {run} --set accumulate=2")


@pytest.mark.parametrize(
    ("batch", "words"), [(5, r"the same command with --set latent\.cache\.batch=2"), (1, "data.size")]
)
def test_an_encoding_says_how_to_take_fewer_at_once(tmp_path, monkeypatch, batch, words):
    monkeypatch.setattr(workflow, "digest", lambda _: "0" * 64)
    monkeypatch.setattr(workflow, "encode_set", fails(GPU_IS_FULL))
    asked = resolve("latent", settings=("data={set: digits, size: null}", f"latent.cache.batch={batch}", "device=cpu"))
    with pytest.raises(InputError, match=rf"cpu had no memory left while latents were encoded; whole.*{words}"):
        workflow.encode(SimpleNamespace(network=nn.Identity()), digits(), tmp_path, asked, QUIET)


def test_scores_that_do_not_fit_leave_the_model(tmp_path, monkeypatch):
    asked = resolve("latent", settings=("device=cpu",))
    monkeypatch.setattr(workflow, "model_step", lambda _: asked.steps)
    monkeypatch.setattr(workflow._Workflow, "_score", fails(GPU_IS_FULL))
    with pytest.raises(
        InputError, match=rf"score the model, which is whole.*rectiflow evaluate {tmp_path} --count 200"
    ):
        workflow._Workflow(asked, tmp_path, QUIET)._evaluate()


def test_every_command_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Info, "__call__", fails(CPU_IS_FULL))
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "rectiflow: no memory was left; ask for less at once, or use another device.\n"


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("shape '[2, 3]' is invalid"), ValueError("out of memory"), KeyError("x")):
        with pytest.raises(type(error)) as caught, told_if_full():
            raise error
        assert caught.value is error


def test_the_other_processes_say_so_too(monkeypatch):
    said = []
    monkeypatch.setattr(ranks, "started", lambda: True)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    monkeypatch.setattr(ranks, "gather", lambda words: said.append(words) or [words])
    for error in (GPU_IS_FULL, CPU_IS_FULL, MemoryFull("of this and that"), RuntimeError("another")):
        with pytest.raises(type(error)), ranks.first_then_others():
            raise error
    assert ["no memory was left" in words for words in said] == [True, True, False, False]
    assert said[2] == "of this and that"
