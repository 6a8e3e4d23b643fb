"""The parts of training, each by itself."""

import pytest
import torch
from rich.console import Console

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.pipeline import Pipeline, Request
from rectiflow.recipes.registry import resolve
from rectiflow.training.log import RunLog, last_metrics
from rectiflow.training.precision import resolve_device, resolve_precision
from rectiflow.training.stages import FlowStage
from tests.conftest import SMALL

CPU = torch.device("cpu")


def test_precision_is_measured_where_the_hardware_has_it(monkeypatch):
    import time

    def slow_in(dtype):
        def step():
            inside = torch.is_autocast_enabled("cpu")
            time.sleep(0.02 if (dtype == "bfloat16") == inside else 0.001)

        return step

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert resolve_precision("auto", CPU, slow_in("float32"))[0] == "bfloat16"
    assert resolve_precision("auto", CPU, slow_in("bfloat16"))[0] == "float32"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert resolve_precision("auto", CPU, slow_in("float32"))[0] == "float32"
    assert resolve_precision("bfloat16", CPU, slow_in("float32")) == ("bfloat16", "as asked")


def test_absent_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(InputError, match=r"cuda is not available.*available: cpu"):
        resolve_device("cuda")


def test_the_loss_of_a_step_is_a_function_of_the_step(small):
    stage = FlowStage(small, digits(), CPU)
    torch.nn.init.normal_(stage.flow.network.patch_out.weight)
    first = stage.loss(3)
    stage.loss(4)
    assert torch.equal(stage.loss(3), first)
    assert not torch.equal(stage.loss(4), first)
    assert stage.held_out(stage.module) == stage.held_out(stage.module)


def test_the_weight_and_the_schedule_of_the_settings_are_used(small):
    """c(t) of the noise loss on the rectified path is (1−t)²: each sample's loss is weighed by it, held out too."""
    stages = {
        kind: FlowStage(resolve("digits", settings=(*SMALL, f"weight.kind={kind}", "batch=1")), digits(), CPU)
        for kind in ("velocity", "noise")
    }
    seen = []
    stages["velocity"].flow.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    plain, weighted = (stages[kind].loss(0) for kind in ("velocity", "noise"))
    assert float(weighted) == pytest.approx(float(plain) * (1 - float(seen[0])) ** 2, rel=1e-5)
    assert stages["noise"].held_out(stages["noise"].module) != stages["velocity"].held_out(stages["velocity"].module)


@pytest.mark.parametrize("name", ["ve", "vp-linear", "polynomial"])
def test_scaled_schedules_train(small, name):
    """A network that outputs 0 on data of unit size has a data loss of about σ²: scaled, not 80 times as much."""
    stage = FlowStage(resolve("digits", settings=(*SMALL, f"flow.schedule={name}", "weight.kind=edm")), digits(), CPU)
    loss = stage.loss(0)
    loss.backward()
    assert 0.01 < float(loss) < 50
    assert all(torch.isfinite(p.grad).all() for p in stage.flow.parameters() if p.grad is not None)


def test_condition_dropout_share(small):
    config = small.model_copy(update={"condition_dropout": 0.3, "batch": 5000})
    stage, seen = FlowStage(config, digits(), CPU), []
    stage.flow.network.register_forward_pre_hook(lambda _, args: seen.append(args[2].labels))
    stage.loss(0)
    assert float((seen[0] == -1).float().mean()) == pytest.approx(0.3, abs=0.02)
    stage.held_out(stage.module)
    assert all((labels >= 0).all() for labels in seen[1:])


def test_dequantisation_fills_the_gaps_between_levels(small):
    config = small.model_copy(update={"data": small.data.model_copy(update={"dequantise": 1.0})})
    stage = FlowStage(config, digits(), CPU)
    pixels = torch.zeros(4000, 1, 1, 1)
    spread = stage._latents(pixels, stage._key("dequantise"), torch.arange(4000))
    assert float(spread.abs().max()) == pytest.approx(1 / 16, rel=0.01)  # half of 2/(17−1)
    assert float(spread.std()) == pytest.approx(1 / 8 / 12**0.5, rel=0.03)


def test_a_network_without_classes_is_unconditional(small, tmp_path):
    config = small.model_copy(update={"network": small.network.model_copy(update={"classes": 0})})
    stage = FlowStage(config, digits(), CPU)
    stage.loss(0).backward()
    stage.save(stage.module, tmp_path, 1)
    assert stage.preview(stage.module).size[1] == (8 + 2) * 4  # one row
    pipeline = Pipeline.load(tmp_path)
    assert pipeline.sample(Request(count=3, steps=2)).labels.tolist() == [-1, -1, -1]
    with pytest.raises(InputError, match="unconditional"):
        pipeline.sample(Request(["3"]))


@pytest.mark.parametrize(("name", "value"), [("classes", 5), ("channels", 3)])
def test_a_network_that_does_not_fit_the_data(small, name, value):
    config = small.model_copy(update={"network": small.network.model_copy(update={name: value})})
    with pytest.raises(InputError, match=f"network.{name} is {value}, but the data have"):
        FlowStage(config, digits(), CPU)


@pytest.mark.parametrize("seed", [-1, 2**80])
def test_any_integer_is_a_seed(small, seed):
    stage = FlowStage(small.model_copy(update={"seed": seed}), digits(), CPU)
    assert torch.isfinite(stage.loss(0))


def test_preview_is_a_row_for_each_class(small):
    stage = FlowStage(small, digits(), CPU)
    image = stage.preview(stage.module)
    assert image.size == ((8 * 9 + 1) * 4, (10 * 9 + 1) * 4)


def test_log_says_where_it_stands(tmp_path, capsys):
    console = Console(force_terminal=False, width=200)
    with RunLog(tmp_path, 0, 10, console) as log:
        log.write(10, {"loss": 0.25, "images_per_second": 12.0})
        log.show(10)
    assert "step 10/10: loss 0.2500, 12 images/s, 0 s left" in capsys.readouterr().out
    metrics = last_metrics(tmp_path / "metrics.jsonl")
    assert metrics.pop("seconds") < 60
    assert metrics == {"step": 10, "loss": 0.25, "images_per_second": 12.0}
    assert last_metrics(tmp_path / "none.jsonl") == {}
