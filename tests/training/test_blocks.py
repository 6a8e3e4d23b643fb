"""What is applied to a network from outside changes memory and time, and nothing else."""

import copy
from typing import final

import pytest
import torch
from rich.console import Console
from torch import nn

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, UNetConfig
from rectiflow.recipes.registry import resolve
from rectiflow.training.blocks import apply_switches, repeated_blocks
from rectiflow.training.ema import Ema
from rectiflow.training.parts import parts
from rectiflow.training.run import train
from rectiflow.training.run_folder import read_run
from rectiflow.training.stages import FlowStage, Stage
from rectiflow.training.trainer import Trainer
from tests.conftest import SMALL
from tests.training.test_run import same, state, stop_at

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


class Convolutional(nn.Module):
    """Two residual convolutions as blocks, one picture in, one out."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x))
        return x


@final
class Pictures(Stage):
    """A network of convolutions that learns to mirror pictures."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.config, self.module, self.samples_per_step = config, Convolutional(), 8

    def loss(self, step, part=slice(None), turn=""):
        x = torch.randn(8, 4, 6, 5, generator=torch.Generator().manual_seed(step))[part]
        return ((self.module(x) - x.flip(-1)) ** 2).mean((1, 2, 3)).sum() / 8

    def held_out(self, module):
        return {}

    def preview(self, module):
        raise NotImplementedError

    def save(self, module, folder, step):
        pass


def random_stage(*settings):
    """A stage with its switches applied and every weight random, so that every gradient is there."""
    config = resolve("digits", settings=[*SMALL, "network.depth=2", *settings])
    stage = FlowStage(config, digits(), CPU)
    torch.manual_seed(0)
    for parameter in stage.module.parameters():
        nn.init.normal_(parameter, std=0.2)
    apply_switches(stage.module, config)
    return stage


def gradients(stage):
    stage.loss(0).backward()
    return {name: p.grad for name, p in stage.module.named_parameters()}


def saved_bytes(stage):
    """Bytes that the forward pass of a step keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = stage.loss(0)
    del loss
    return sum(kept.values())


def test_blocks_are_found_wherever_they_are():
    inner = Convolutional()
    assert repeated_blocks(nn.ModuleDict({"network": inner})) == list(inner.blocks)
    outer = nn.Module()
    outer.blocks = nn.ModuleList([inner])
    assert repeated_blocks(outer) == [inner]  # blocks within blocks belong to the outer ones
    assert repeated_blocks(nn.Linear(2, 2)) == []


def test_recomputed_activations_give_equal_gradients_with_less_memory():
    plain, recomputed = random_stage(), random_stage("activation_checkpointing=true")
    left, right = gradients(plain), gradients(recomputed)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert saved_bytes(recomputed) < 0.7 * saved_bytes(plain)


def test_a_copy_of_a_recomputing_network_computes_with_its_own_weights():
    stage = random_stage("activation_checkpointing=true")
    average = copy.deepcopy(stage.module)
    for parameter in average.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert stage.held_out(average) != stage.held_out(stage.module)
    assert repeated_blocks(average)[0].forward.args[0].__self__ is repeated_blocks(average)[0]


def test_recomputation_needs_blocks():
    config = resolve("digits", settings=[*SMALL, "activation_checkpointing=true"])
    with pytest.raises(InputError, match="needs a network with blocks"):
        apply_switches(nn.Linear(2, 2), config)


def test_channels_last_is_the_same_convolution():
    config = resolve("digits", settings=[*SMALL, "channels_last=true"])
    torch.manual_seed(0)
    plain = Convolutional()
    switched = copy.deepcopy(plain)
    apply_switches(switched, config)
    assert all(block.weight.is_contiguous(memory_format=torch.channels_last) for block in switched.blocks)
    x = torch.randn(2, 4, 6, 5)
    assert switched.blocks[0](x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain(x), switched(x), atol=1e-6)
    assert switched.state_dict().keys() == plain.state_dict().keys()
    average = Ema(switched, 0.5)
    average.update(plain, 3)
    assert torch.allclose(average.module(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("switch", ["channels_last", "activation_checkpointing"])
@pytest.mark.parametrize("ema", ["ema.kind=power", "ema.decay=0.9"])
def test_convolutions_resume_bit_for_bit(switch, ema, tmp_path):
    config = resolve("digits", settings=[*SMALL, f"{switch}=true", ema, "accumulate=2"])

    def trainer(folder):
        stage = Pictures(config)
        apply_switches(stage.module, config)
        return Trainer(stage, config, tmp_path / folder, CPU)

    def advance(subject, count):
        for _ in range(count):
            subject._train(subject.step)
            subject.step += 1
        subject.save()
        return subject

    whole = advance(trainer("whole"), 5)
    advance(trainer("stopped"), 2)
    resumed = trainer("stopped")
    assert resumed.restore(print) == 2
    assert same(advance(resumed, 3)._state(), whole._state())
    wanted = torch.channels_last if switch == "channels_last" else torch.contiguous_format
    for module in (resumed.stage.module, resumed.ema.module):
        assert all(block.weight.is_contiguous(memory_format=wanted) for block in module.blocks)


@pytest.fixture
def traced(monkeypatch):
    """`torch.compile` without the C++ compiler behind it, counting what it is asked for."""
    asked, original = [], torch.compile

    def compile_(call, *args, **kwargs):
        asked.append(call)
        return original(call, *args, backend="eager", **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    return asked


def test_compiling_leaves_names_averages_and_values(traced):
    plain, compiled = random_stage(), random_stage("compile=true")
    assert len(traced) == 2  # block by block
    assert plain.module.state_dict().keys() == compiled.module.state_dict().keys()
    left, right = gradients(plain), gradients(compiled)
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    average = Ema(compiled.module, 0.0)
    assert average.module.state_dict().keys() == plain.module.state_dict().keys()


def test_a_network_without_blocks_is_compiled_whole(traced):
    config = resolve("digits", settings=[*SMALL, "compile=true"])
    apply_switches(nn.ModuleDict({"network": nn.Linear(2, 2)}), config)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "setting",
    ["optimiser.kind=muon", "accumulate=3", "activation_checkpointing=true", "compile=true", "ema.kind=power"],
)
def test_resumed_with_a_switch_is_never_stopped_bit_for_bit(setting, tmp_path, monkeypatch, traced):
    config = resolve("digits", settings=[*SMALL, setting])
    train(config, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert not train(config, tmp_path / "stopped", QUIET).finished
    assert train(read_run(tmp_path / "stopped"), tmp_path / "stopped", QUIET).finished
    whole, resumed = (state(config, tmp_path / name) for name in ("whole", "stopped"))
    assert whole["step"] == 6
    assert same(whole, resumed)


def test_a_compiler_that_fails_is_one_line(small, tmp_path, monkeypatch):
    original = torch.compile

    def broken(*_):
        raise FileNotFoundError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda call: original(call, backend=broken))
    compiled = small.model_copy(update={"compile": True})
    with pytest.raises(InputError, match=r"compile=true does not work on this machine.*no C\+\+ compiler"):
        train(compiled, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:  # the same where a run is gone on with and `compile` was not set before
        stop_at(patch, 2)
        train(small, tmp_path / "plain", QUIET)
    with pytest.raises(InputError, match=r"compile=true does not work on this machine.*no C\+\+ compiler"):
        train(compiled, tmp_path / "plain", QUIET)
    assert train(small, tmp_path / "plain", QUIET).finished


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_parts_of_a_batch_add_up_to_the_step(accumulate):
    """Equal gradients: the draws of a position do not depend on the part it is taken in."""
    whole, stage = random_stage(), random_stage(f"accumulate={accumulate}")
    expected, total = gradients(whole), 0.0
    for part in parts(stage.config):
        loss = stage.loss(0, part)
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(whole.loss(0).detach()), rel=1e-6)
    for name, parameter in stage.module.named_parameters():
        assert torch.allclose(
            parameter.grad, expected[name], atol=1e-6 * float(expected[name].abs().max().clamp_min(1))
        )


def test_more_parts_than_samples():
    with pytest.raises(InputError, match="accumulate 9 takes more parts than a batch of 8 has samples"):
        resolve("digits", settings=[*SMALL, "accumulate=9"])


def test_the_blocks_of_each_network():
    unet = build(UNetConfig(channels=1, classes=0, width=16))
    assert len(repeated_blocks(unet)) == 3 * 2 + 2 + 3 * 2
    assert len(repeated_blocks(build(DiTConfig(channels=1, classes=0, depth=3)))) == 3


def test_a_unet_recomputes_with_equal_gradients(small):
    config = resolve("digits", settings=[*SMALL[1:], "network={kind: unet, width: 16}"])
    gradients = []
    for recomputed in (False, True):
        settings = config.model_copy(update={"activation_checkpointing": recomputed})
        stage = FlowStage(settings, digits(), CPU)
        apply_switches(stage.module, settings)
        for parameter in stage.module.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        stage.loss(0).backward()
        gradients.append([p.grad for p in stage.module.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
