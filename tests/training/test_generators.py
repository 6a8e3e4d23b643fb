"""A VAE's decoder and a GAN's generator: their losses in closed form, and that neither turn leaks into the other."""

import math

import pytest
import torch
from rich.console import Console
from torch import nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digits
from rectiflow.pipeline import Pipeline, Request
from rectiflow.recipes.registry import resolve
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.generators import GANStage, VAEStage, generate
from rectiflow.training.run import train
from rectiflow.training.run_folder import read_run
from rectiflow.training.stepper import Stepper
from rectiflow.training.trainer import Trainer
from tests.conftest import SMALL

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


def config(recipe, *settings):
    return resolve(recipe, settings=[*SMALL, *settings])


class Linear(nn.Module):
    """A critic with D(x) = mean of a·x + b·‖x‖²/2 over the pixels."""

    def __init__(self, slope, curvature=0.0):
        super().__init__()
        self.slope, self.curvature = nn.Parameter(torch.tensor(slope)), curvature

    def forward(self, x, t, condition=None):
        return self.slope * x + self.curvature * x**2 / 2


def test_the_bound_of_a_decoder_that_is_the_identity_is_known():
    """Fresh networks give m = 0, s = 1 and u = 0: E|x − z|² = x² + 1 a pixel, and no divergence."""
    stage = VAEStage(config("vae", "vae.deviation=0.5", "batch=512"), digits(), CPU)
    x, condition, index = stage._batch(0, slice(None))
    draw = stage._noise("posterior", 0, index, x)
    reconstruction, divergence = stage._bound(stage.module, x, draw, condition)
    assert torch.equal(divergence, torch.zeros(512))
    expected = (x.square().mean() + 1) / (2 * 0.25) + math.log(0.5 * math.sqrt(2 * math.pi))
    assert reconstruction.mean().item() == pytest.approx(float(expected), rel=0.02)
    assert float(stage.loss(0)) == pytest.approx(float(reconstruction.mean()), rel=1e-5)


def test_the_divergence_is_that_of_two_gaussians():
    stage = VAEStage(config("vae"), digits(), CPU)

    class Fixed(nn.Module):
        def forward(self, x, t, condition=None):
            mean, log_variance = x.chunk(2, dim=1)
            return torch.cat([mean, log_variance - 1.0], dim=1)

    stage.module["encoder"] = Fixed()
    x, condition, _ = stage._batch(0, slice(None))
    _, divergence = stage._bound(stage.module, x, torch.zeros_like(x), condition)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(x, math.exp(-0.5)), normal(torch.zeros_like(x), 1.0))
    assert torch.allclose(divergence, expected.flatten(1).mean(1), atol=1e-6)


def test_the_critics_penalty_is_that_of_its_slope():
    stage = GANStage(config("gan", "gan.penalty=3.0", "gan.penalty_every=1", "batch=8"), digits(), CPU)
    stage.module["critic"] = Linear(2.0, curvature=0.5)
    x, condition, index = stage._batch(0, slice(None))
    made = generate(stage.flow, stage._noise("critic noise", 0, index, x), condition)
    slopes = [((2 + 0.5 * batch) / 64).square().flatten(1).sum(1) for batch in (x, made)]
    ranked = nn.functional.softplus(stage._judge(made, condition) - stage._judge(x, condition))
    expected = ranked + 3 / 2 * (slopes[0] + slopes[1])
    assert torch.allclose(stage.loss(0, turn="critic"), expected.mean(), atol=1e-6)


def test_the_penalty_is_taken_in_turns_and_counts_for_all():
    every, seldom = (
        GANStage(config("gan", "gan.penalty=1.0", f"gan.penalty_every={k}"), digits(), CPU) for k in (1, 4)
    )
    for stage in (every, seldom):
        stage.module["critic"] = Linear(8.0)
    bare = GANStage(config("gan", "gan.penalty=0.0"), digits(), CPU)
    bare.module["critic"] = Linear(8.0)
    once = float(every.loss(0, turn="critic") - bare.loss(0, turn="critic"))
    assert once == pytest.approx(8.0**2 / 64, rel=1e-4)  # both halves of ½·2·64·(8/64)²
    assert float(seldom.loss(0, turn="critic") - bare.loss(0, turn="critic")) == pytest.approx(4 * once, rel=1e-4)
    assert float(seldom.loss(1, turn="critic") - bare.loss(1, turn="critic")) == 0


def test_neither_turn_moves_or_leaves_a_gradient_in_the_other(monkeypatch):
    """The step of one player, whatever is in the other's gradients, is that player's alone."""
    settings = config("gan")
    stage = GANStage(settings, digits(), CPU)
    stepper = Stepper(stage, settings, CPU)
    for turn, other in (("generator", "critic"), ("critic", "generator")):
        stage.module.zero_grad(set_to_none=True)
        before = {name: p.clone() for name, p in stage.module.get_submodule(other).named_parameters()}
        moving = {name: p.clone() for name, p in stage.module.get_submodule(turn).named_parameters()}
        monkeypatch.setattr(stage, "turns_at", lambda step, turn=turn: (turn,))
        for step in range(3):
            assert not stepper.take(step).complaint
        assert all(p.grad is None for p in stage.module.get_submodule(other).parameters())
        assert all(torch.equal(before[name], p) for name, p in stage.module.get_submodule(other).named_parameters())
        if turn == "critic":
            assert any(
                not torch.equal(moving[name], p) for name, p in stage.module.get_submodule(turn).named_parameters()
            )
    assert all(p.requires_grad for p in stage.module.parameters())


@pytest.mark.parametrize("recipe", ["vae", "gan"])
def test_stopped_and_gone_on_with_is_never_stopped_bit_for_bit(recipe, tmp_path):
    settings = config(recipe)
    assert train(settings, tmp_path / "whole", QUIET).finished
    assert train(settings.model_copy(update={"keep": 9}), tmp_path / "parts", QUIET).finished
    for path in (tmp_path / "parts" / "checkpoints").glob("step-00000006"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink()
        path.rmdir()
    assert train(read_run(tmp_path / "parts"), tmp_path / "parts", QUIET).step == 6
    whole, parts = (Pipeline.load(tmp_path / name).flow.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    states = []
    for name in ("whole", "parts"):
        stage = (VAEStage if recipe == "vae" else GANStage)(settings, digits(), CPU)
        trainer = Trainer(stage, settings, tmp_path / name, CPU)
        trainer.restore(print)
        states.append(trainer._state())
    assert Checkpoints(tmp_path / "parts" / "checkpoints", 9).steps()[-1] == 6
    leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
    tensors = [[leaf for leaf in flat if isinstance(leaf, torch.Tensor)] for flat in leaves]
    assert len(tensors[0]) == len(tensors[1]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


@pytest.mark.parametrize("recipe", ["vae", "gan"])
def test_a_one_step_model_is_sampled_in_one_step_and_has_no_score(recipe, tmp_path):
    train(config(recipe), tmp_path, QUIET)
    pipeline = Pipeline.load(tmp_path)
    samples = pipeline.sample(Request(classes=("3",), count=2, steps=50, solver="heun", seed=5))
    z = pipeline.flow.source.sample(Key(5, "noise"), torch.arange(2), (1, 8, 8))
    with torch.no_grad():
        expected = generate(pipeline.flow, z, _labels(3, 2))
    assert torch.allclose(samples.pixels, expected, atol=1e-5)
    assert len(list(pipeline.states(Request(classes=("3",))))) == 2
    with pytest.raises(InputError, match="without condition dropout"):
        pipeline.sample(Request(guidance=1.0))
    with pytest.raises(InputError, match="average velocity"):
        _ = pipeline.flow(z, torch.tensor(1.0), _labels(3, 2)).score
    with pytest.raises(InputError, match="sample it in one step"):
        pipeline.flow(z, torch.tensor(0.5), _labels(3, 2))


def _labels(label, count):
    return Condition(torch.full((count,), label))


def test_an_objective_asks_for_its_kind_of_flow():
    with pytest.raises(InputError, match=r"objective gan needs flow\.one_step=true; use recipe gan"):
        config("digits", "objective=gan")
    with pytest.raises(InputError, match="schedule=rectified and prediction=velocity"):
        config("vae", "flow.prediction=data")
