"""Rates in closed form; what each optimiser moves, and by how much."""

import pytest
import torch
from torch import nn

from rectiflow.base.errors import InputError
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig
from rectiflow.training.config import OptimiserConfig
from rectiflow.training.optimiser import hidden_matrices, learning_rate, optimisers


def rates(steps, **settings):
    return [learning_rate(OptimiserConfig(**settings), step, steps) for step in range(steps)]


def test_learning_rate_rises_then_falls():
    config = OptimiserConfig(lr=2.0, warmup=4, decay="linear")
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([2 - 0.25 * i for i in range(8)])
    cosine = [learning_rate(config.model_copy(update={"decay": "cosine"}), step, 12) for step in (4, 8, 11)]
    assert cosine[0] == 2.0
    assert cosine[1] == pytest.approx(1.0)
    assert 0 < cosine[2] < 0.1
    assert learning_rate(config.model_copy(update={"decay": "constant"}), 11, 12) == 2.0


def test_trapezoid_is_flat_and_then_a_line_to_zero():
    got = rates(20, lr=3.0, warmup=2, decay="trapezoid", decay_share=0.25)
    assert got[:2] == [1.5, 3.0]
    assert got[2:16] == [3.0] * 14  # the decay takes the last 5 of 20 steps, from 15 on
    assert got[15:] == pytest.approx([3 * (20 - step) / 5 for step in range(15, 20)])
    assert OptimiserConfig().decay_share == 0.2


def test_trapezoid_without_a_flat_part_is_linear():
    share = rates(10, lr=2.0, warmup=0, decay="trapezoid", decay_share=1.0)
    assert share == pytest.approx(rates(10, lr=2.0, warmup=0, decay="linear"))


def test_adamw_takes_the_settings():
    (adamw,) = optimisers(nn.Linear(2, 2), OptimiserConfig(betas=(0.8, 0.9), weight_decay=0.1))
    group = adamw.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.1)


class Convolutional(nn.Module):
    """Blocks that a property gathers, as a U-Net may have them."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleDict({"convolution": nn.Conv2d(1, 4, 3, padding=1), "modulation": nn.Linear(3, 8)})
        self.up = nn.ModuleDict({"attention": nn.Linear(4, 4)})
        self.out = nn.Linear(4, 2)

    @property
    def blocks(self):
        return [self.down, self.up]


@pytest.mark.parametrize("modulation", ["block", "shared"])
def test_muon_takes_the_matrices_of_the_blocks_alone(modulation):
    network = build(DiTConfig(channels=1, classes=3, width=16, depth=2, heads=2, modulation=modulation))
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(nn.ModuleDict({"network": network}))}
    parts = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    assert chosen == {f"blocks.{block}.{part}.weight" for block in range(2) for part in parts}


def test_each_parameter_is_moved_by_one_optimiser():
    for module in (build(DiTConfig(channels=1, classes=3, width=16, depth=2, heads=2)), Convolutional()):
        moved = [
            id(p) for o in optimisers(module, OptimiserConfig(kind="muon")) for g in o.param_groups for p in g["params"]
        ]
        assert sorted(moved) == sorted(id(p) for p in module.parameters())


def test_kernels_and_modulations_stay_with_adamw():
    network = Convolutional()
    assert [id(p) for p in hidden_matrices(network)] == [id(network.up["attention"].weight)]


def test_muon_without_hidden_matrices():
    with pytest.raises(InputError, match=r"no linear maps in repeated blocks; set optimiser.kind=adamw"):
        optimisers(nn.Sequential(nn.Linear(2, 2)), OptimiserConfig(kind="muon"))


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_a_step_of_muon_is_orthogonal_and_as_long_as_adamws(shape):
    """All singular values of the step are alike, as far as five Newton-Schulz iterations go; its rms is 0.2·lr."""
    block = nn.Linear(*shape[::-1], bias=False)
    before = block.weight.detach().clone()
    module = nn.Module()
    module.blocks, module.out = nn.ModuleList([block]), nn.Linear(2, 2)
    muon, _ = optimisers(module, OptimiserConfig(kind="muon", lr=0.1))
    block.weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3
    muon.step()
    change = block.weight.detach() - before
    steps, gradients = torch.linalg.svdvals(change), torch.linalg.svdvals(block.weight.grad)
    assert float(steps.min() / steps.max()) > 0.5 > float(gradients.min() / gradients.max())
    assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.2)
