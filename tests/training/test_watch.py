"""What is measured of a run beside its loss: bands of noise, FLOPs, utilisation, memory."""

import math
import mmap
import time

import pytest
import torch
from torch import nn

from rectiflow.data.builtin import digits
from rectiflow.recipes.registry import resolve
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.bands import BANDS, SAMPLES, by_noise_level, means
from rectiflow.training.generators import GANStage
from rectiflow.training.stage import Stage
from rectiflow.training.stages import FlowStage
from rectiflow.training.watch import Watch, _matrix_rate, matrix_rate, memory, weight_norm

CPU = torch.device("cpu")


def observed(losses, t):
    """What some steps saw, as the trainer collects it."""
    steps = [by_noise_level(*each) for each in zip(losses, t, strict=True)]
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def test_bands_recombine_to_the_whole_loss():
    generator = torch.Generator().manual_seed(0)
    losses = [torch.rand(n, generator=generator) for n in (7, 3, 11)]
    t = [torch.rand(len(part), generator=generator, dtype=torch.float64) ** 3 for part in losses]
    columns = observed(losses, t)
    seen, whole = means(columns), torch.cat(losses)
    share = {name: float(columns[name + SAMPLES].sum()) / len(whole) for name in seen}
    assert sum(share.values()) == pytest.approx(1)
    assert sum(seen[name] * share[name] for name in seen) == pytest.approx(float(whole.mean()), rel=1e-5)
    inside = torch.cat(t) < 1 / BANDS
    assert seen["loss_t_0.0-0.2"] == pytest.approx(float(whole[inside].mean()), rel=1e-5)


def test_a_band_without_samples_is_no_zero():
    t = [torch.tensor([0.1, 0.5]), torch.tensor([0.55, 1.0])]
    columns = observed([torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])], t)
    # Not seen in one of two steps: the mean of those that were, not half of it; t = 1 is of the last band.
    assert means(columns) == {"loss_t_0.0-0.2": 1.0, "loss_t_0.4-0.6": 3.0, "loss_t_0.8-1.0": 8.0}
    assert means({"adaptive_weight": torch.tensor([1.0, torch.nan, 3.0]), "never": torch.tensor([torch.nan])}) == {
        "adaptive_weight": 2.0
    }


@pytest.mark.parametrize("accumulate", [1, 3])
def test_bands_of_a_stage_are_those_of_its_loss(small, accumulate):
    config = small.model_copy(update={"batch": 32})
    stage = FlowStage(config, digits(), CPU)
    bounds = [32 * part // accumulate for part in range(accumulate + 1)]
    whole, parts = 0.0, []
    for part in map(slice, bounds, bounds[1:]):
        whole += float(stage.loss(3, part).detach())
        parts.append(stage.observed)
    # Means over parts, as a step takes them, and then over steps: the ratio of sums is kept.
    step = {name: torch.stack([part[name] for part in parts]).nanmean(0)[None] for name in parts[0]}
    seen, count = means(step), sum(float(v) for n, v in step.items() if n.endswith(SAMPLES))
    assert sum(seen[n] * float(step[n + SAMPLES]) / count for n in seen) == pytest.approx(whole, rel=1e-5)


class Products(Stage):
    """Trains by one product of square matrices, forward and back."""

    def __init__(self, config, side):
        self.config, self.samples_per_step = config, config.batch
        self.module = nn.Linear(side, side, bias=False)
        self.x = torch.full((side, side), 0.5)
        self.calls = 0

    def loss(self, step, part=slice(None), turn=""):
        self.calls += 1
        return (self.module(self.x) * self.x).sum()

    def kind(self, step):
        return step % 2

    def held_out(self, module):
        return {}

    def preview(self, module):
        raise NotImplementedError

    def save(self, module, folder, step):
        raise NotImplementedError


def test_utilisation_of_a_plain_product_is_its_own_rate(small):
    side = 256
    stage = Products(small, side)
    watch = Watch(stage, small, CPU)
    watch.begin()
    assert stage.calls == 2  # one of each kind of step
    assert watch.flops(0) == watch.flops(1) == 2 * 2 * side**3  # y = xW and the gradient by W
    assert all(p.grad is None for p in stage.module.parameters())
    best, plain = 0.0, math.inf
    x, y = torch.randn(2, side, side)
    for step in range(200):  # short ones, often and in turns: the machine may be busy with something else meanwhile
        start = time.perf_counter()
        stage.loss(step).backward()
        best = max(best, watch.at_log(10, 1 / (time.perf_counter() - start))["utilisation"])
        start = time.perf_counter()
        _ = (x @ y) @ y
        plain = min(plain, time.perf_counter() - start)
    assert 0.4 < best * matrix_rate(CPU, "float32") / (2 * 2 * side**3 / plain) < 1.4
    rate = matrix_rate(CPU, "float32")
    assert watch.at_log(12, 3.0)["utilisation"] == pytest.approx(3.0 * 2 * 2 * side**3 / rate)


def test_flops_of_a_network_are_counted_by_hand(small):
    config = small.model_copy(update={"accumulate": 2})
    stage = FlowStage(config, digits(), CPU)
    watch = Watch(stage, config, CPU)
    watch.begin()
    # A block of width w sees 4 tokens: at least its linear maps, three times (forward, by inputs, by weights).
    linear = sum(p.numel() for n, p in stage.module.named_parameters() if p.dim() == 2 and "blocks" in n)
    modulation = sum(p.numel() for n, p in stage.module.named_parameters() if p.dim() == 2 and "modulation" in n)
    least = 3 * 2 * config.batch * 4 * (linear - modulation)
    assert least < watch.flops(0) < 3 * least
    alone = small.model_copy(update={"accumulate": 1})
    other = Watch(FlowStage(alone, digits(), CPU), alone, CPU)
    other.begin()
    assert other.flops(0) == watch.flops(0)  # however many parts the batch is taken in


def test_attention_on_a_cpu_is_counted_as_on_a_gpu(small):
    class Attends(Products):
        def loss(self, step, part=slice(None), turn=""):
            qkv = self.module(torch.ones(2, 4, 256, 16, 16)).flatten(3)[..., :16]
            return nn.functional.scaled_dot_product_attention(qkv, qkv, qkv).sum()

    stage = Attends(small, 16)
    watch = Watch(stage, small, CPU)
    watch.begin()
    product = 2 * 2 * 4 * 256 * 256 * 16  # q·k, of 2 samples and 4 heads
    assert watch.flops(0) >= (2 + 5) * product


def test_steps_of_other_kinds_are_counted_apart():
    settings = ("network={patch: 4, width: 16, depth: 1, heads: 2}", "steps=40", "batch=8", "precision=float32")
    config = resolve("gan", settings=settings)
    watch = Watch(GANStage(config, digits(), CPU), config, CPU)
    watch.begin()
    every = config.gan.penalty_every
    penalised, plain = watch.flops(every), watch.flops(every + 1)
    assert penalised > 1.2 * plain > 0
    line = watch.at_log(2 * every, 1.0)["utilisation"]  # two steps with the penalty among them
    mean = (2 * penalised + (2 * every - 2) * plain) / (2 * every)
    assert line == pytest.approx(mean / matrix_rate(CPU, "float32"))


def test_an_adversary_that_comes_late_counts_from_then_on(small):
    settings = (
        "data={set: digits, size: null}",
        "network={width: 8, multipliers: [1, 2], latent_channels: 3, groups: 4}",
        "discriminator={width: 8, layers: 1, start: 0.25, lead: 0.25}",
        "loss.equivariance=0",
        "steps=40",
        "batch=4",
        "precision=float32",
    )
    config = resolve("autoencoder", settings=settings)
    assert config.discriminator_from == (10, 20)
    watch = Watch(AutoencoderStage(config, digits(), CPU), config, CPU)
    watch.begin()
    alone, game, felt = (watch.flops(step) for step in (0, 15, 30))
    assert 0 < alone < game < felt


def test_what_cannot_be_counted_is_left_out(small):
    class Fails(Products):
        def loss(self, step, part=slice(None), turn=""):
            raise RuntimeError("no step today")

    watch = Watch(Fails(small, 4), small, CPU)
    watch.begin()
    assert watch.flops(0) == 0
    assert "utilisation" not in watch.at_log(1, 1.0)


def test_counting_draws_nothing_and_changes_nothing(small):
    stage = FlowStage(small, digits(), CPU)
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    loss = float(stage.loss(0).detach())
    Watch(stage, small, CPU).begin()
    assert float(stage.loss(0).detach()) == loss
    assert all(torch.equal(before[name], value) for name, value in stage.module.state_dict().items())


def test_norm_and_memory():
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, 3.0]]))
        module.bias.copy_(torch.tensor([6.0]))
    assert weight_norm(module) == pytest.approx(7)
    before = memory(CPU)
    # Pages of its own: an allocator may answer from what earlier work left it, and nothing would grow.
    with mmap.mmap(-1, 50_000_000) as kept:
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        after = memory(CPU)
    assert 40 < after["memory_mb"] - before["memory_mb"] < 80
    assert after["memory_peak_mb"] >= after["memory_mb"] * 0.95


def test_the_matrix_rate_is_that_of_large_products():
    """Measured anew, before and after products of this test's own, for the machine may be busy meanwhile."""
    x, y = torch.randn(2, 1024, 1024)
    rates, best = [], math.inf
    for _ in range(3):
        _matrix_rate.cache_clear()
        rates.append(matrix_rate(CPU, "float32"))
        for _ in range(10):
            start = time.perf_counter()
            _ = x @ y
            best = min(best, time.perf_counter() - start)
    assert 0.25 < max(rates) / (2 * 1024**3 / best) < 4
