"""Training and sampling beside diffusers, in one run: python benchmarks/throughput.py [ROUNDS] [SECONDS]

Every side trains the same objective on the same batches with the same optimiser. In each of ROUNDS rounds each side
takes its turn (the order turns round), a few steps at a time; medians count. Then the fastest of either side train from
fresh weights for SECONDS of their own time each, in slices, at two learning rates, and are compared by held-out loss.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import common
from peers import CLASSES, PeerDiT, PeerUNet
from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digit_scenes
from rectiflow.data.images import to_float
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, UNetConfig
from rectiflow.sampling.cores import over_cores
from rectiflow.sampling.guidance import ClassifierFree
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver

BATCH, STEPS_A_TURN, RATES = 32, 2, (5e-4, 2e-3)
DIT = DiTConfig(channels=4, classes=CLASSES, patch=2, width=256, depth=6, heads=8)
UNET = UNetConfig(channels=3, classes=CLASSES, width=32, multipliers=(1, 2, 4, 5))
Data = tuple[Tensor, Tensor]  # pictures and labels
SHAPES = {"dit": (4, 16, 16), "unet": (3, 32, 32)}


def pictures(shape: tuple[int, int, int], index: Tensor) -> Data:
    """Scenes with one of their digits as the label; for 4×16×16 halved, with their brightness as a fourth channel."""
    scenes = digit_scenes().train
    x = to_float(scenes.fetch(index))
    labels = torch.tensor([scene.things[0].digit for scene in scenes.scenes(index)])
    if shape[0] == 4:
        x = nn.functional.avg_pool2d(x, 2)
        x = torch.cat([x, x.mean(1, keepdim=True)], 1)
    return x, labels


@dataclass
class Side:
    """One network under one set of settings."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    bfloat16: bool = False
    compiled: bool = False
    channels_last: bool = False
    rate: float = RATES[0]
    rates: list[float] = field(default_factory=list)
    step: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.network = self.make()
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compiled:
            self.network.compile()
        self.flow = Flow(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.rate, betas=(0.9, 0.99), weight_decay=0, fused=True
        )

    def renewed(self, rate: float) -> "Side":
        """The same from fresh weights, at another learning rate."""
        return Side(self.name, self.make, self.shape, self.bfloat16, self.compiled, self.channels_last, rate)

    def loss(self, x: Tensor, labels: Tensor, key: str, number: int) -> Tensor:
        index = torch.arange(len(x)) + number * BATCH
        t, z = Key(0, f"{key} t").uniform(index), Key(0, f"{key} z").normal(index, x.shape[1:])
        if self.channels_last:
            x, z = (a.contiguous(memory_format=torch.channels_last) for a in (x, z))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return flow_matching_loss(self.flow, x, t, z, Condition(labels)).mean()

    def train(self, data: Data) -> None:
        """One step; its time is counted, the making of its batch is not."""
        chosen = Key(0, "order", self.step).permutation(len(data[0]))[:BATCH]
        x, labels = data[0][chosen], data[1][chosen]
        began = time.perf_counter()
        self.optimiser.zero_grad()
        self.loss(x, labels, "train", self.step).backward()
        self.optimiser.step()
        self.spent += time.perf_counter() - began
        self.step += 1

    def held_out(self, data: Data) -> float:
        with torch.no_grad():
            return float(self.loss(*data, "held out", 0))

    def facts(self) -> dict[str, object]:
        x = torch.zeros(1, *self.shape)
        with FlopCounterMode(display=False) as counter:
            self.flow(x, torch.ones(1), Condition(torch.zeros(1, dtype=torch.int64))).value.sum().backward()
        self.network.zero_grad()
        return {
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "gflop_per_image": round(counter.get_total_flops() / 1e9, 3),
        }


def has_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "SVE"))


def sides(kind: str) -> list[Side]:
    """Ours and theirs under each setting that might be the fastest on this machine."""
    shape, ours, theirs = SHAPES[kind], *((DIT, PeerDiT) if kind == "dit" else (UNET, PeerUNet))
    settings: list[dict[str, bool]] = [{}, {"compiled": True}]
    if has_bfloat16():
        settings += [{"bfloat16": True}, {"bfloat16": True, "compiled": True}]
    if kind == "unet":
        settings += [{"compiled": True, "channels_last": True}]
    made = []
    for setting in settings:
        words = " ".join(["bf16" if setting.get("bfloat16") else "fp32", *(k for k in setting if k != "bfloat16")])
        for owner, make in (("rectiflow", lambda: build(ours)), ("diffusers", theirs)):
            made.append(Side(f"{owner} {words}", make, shape, **setting))
    return made


def alternate(sides: list[Side], rounds: int, data: Data) -> None:
    for side in sides:
        side.train(data)  # warm-up, and compilation
    for turn in range(rounds):
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            before = side.spent
            for _ in range(STEPS_A_TURN):
                side.train(data)
            side.rates.append(STEPS_A_TURN * BATCH / (side.spent - before))


def equal_seconds(sides: list[Side], seconds: float, data: Data, held_out: Data) -> dict[str, object]:
    """Held-out loss of each side after as many seconds of its own, from fresh weights, at each of `RATES`."""
    fresh = [(side.name, side.renewed(rate)) for rate in RATES for side in sides]
    for _, side in fresh:
        side.train(data)  # warm-up, and compilation
        side.spent = 0.0
    for part in range(1, 6):
        for _, side in fresh:
            while side.spent < seconds * part / 5:
                side.train(data)
    result: dict[str, object] = {}
    for name, side in fresh:
        result[f"{name}, rate {side.rate:g}"] = {"steps": side.step, "held_out_loss": round(side.held_out(held_out), 4)}
    return result


def matrix_share(rates: dict[torch.dtype, float]) -> dict[str, float]:
    """The transformer's matrix products alone, at their shapes: their rate, and what share of a step they explain."""
    rows, width = BATCH * 64, DIT.width
    hidden = -(-(8 * width // 3) // 64) * 64
    shapes = [(rows, width, 3 * width), (rows, width, width), (rows, width, 2 * hidden), (rows, hidden, width)]
    result = {}
    for dtype in (torch.float32, torch.bfloat16):
        total, flops = 0.0, 0
        for m, k, n in shapes:
            a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
            times = []
            for _ in range(9):
                began = time.perf_counter()
                torch.mm(a, b)
                times.append(time.perf_counter() - began)
            total += statistics.median(times)
            flops += 2 * m * k * n
        name = str(dtype).removeprefix("torch.")
        result[f"{name}_gflops"] = round(flops / total / 1e9, 1)
        result[f"{name}_share_of_a_step"] = round(3 * DIT.depth * total / (BATCH / rates[dtype]), 3)
    return result


def sampling(ours: nn.Module, theirs: nn.Module, rounds: int) -> dict[str, list[float]]:
    """Guided samples a second, 50 steps: ours by Euler, theirs by their DDIM scheduler as their DiT pipeline does.

    Each in float32 and, where the processor has it, in bfloat16 by autocast.
    """
    count, labels = 32, torch.arange(32) % CLASSES
    z = Key(0, "z").normal(torch.arange(count), SHAPES["dit"])
    flow = Flow(ours)
    scheduler = DDIMScheduler()

    def mine(bfloat16: bool) -> None:
        def part(index: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return sample(flow, z[index], solver("euler"), 50, Condition(labels[index]), ClassifierFree(1.0))

        over_cores(part, list(torch.arange(count).chunk(torch.get_num_threads())))

    def peer(bfloat16: bool) -> None:
        scheduler.set_timesteps(50)
        x, classes = z, torch.cat([labels, torch.full_like(labels, -1)])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            for t in scheduler.timesteps:
                both = torch.cat([x, x])
                noise = theirs(both, (t / 1000).expand(2 * count), Condition(classes))
                given, null = noise.chunk(2)
                x = scheduler.step(null + 2.0 * (given - null), t, x).prev_sample

    precisions = ["fp32", "bf16"] if has_bfloat16() else ["fp32"]
    calls: dict[str, Callable[[], None]] = {
        f"{owner} {precision}": partial(call, precision == "bf16")
        for precision in precisions
        for owner, call in (("rectiflow", mine), ("diffusers", peer))
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in (list(calls), list(reversed(calls)))[turn % 2]:
            began = time.perf_counter()
            calls[name]()
            rates[name].append(round(count / (time.perf_counter() - began), 3))
    return {name: values[1:] for name, values in rates.items()}


def main(rounds: int = 5, seconds: float = 40.0) -> None:
    result: dict[str, object] = {"settings": {"batch": BATCH, "optimiser": f"fused AdamW {RATES[0]}", "rounds": rounds}}
    for kind in SHAPES:
        data = pictures(SHAPES[kind], torch.arange(2048))
        held_out = pictures(SHAPES[kind], torch.arange(10_000, 10_256))
        each = sides(kind)
        facts = {name: next(s for s in each if s.name == f"{name} fp32").facts() for name in ("rectiflow", "diffusers")}
        alternate(each, rounds, data)
        medians = {side.name: round(statistics.median(side.rates), 2) for side in each}
        best = {o: max((s for s in each if s.name.startswith(o)), key=lambda s: medians[s.name]) for o in facts}
        entry = {
            "facts": facts,
            "images_per_second": medians,
            "each": {side.name: [round(rate, 2) for rate in side.rates] for side in each},
            "ratio_to_fp32": round(medians[best["rectiflow"].name] / medians["diffusers fp32"], 2),
            "ratio_to_best": round(medians[best["rectiflow"].name] / medians[best["diffusers"].name], 2),
        }
        print(
            kind, entry["facts"], entry["images_per_second"], entry["ratio_to_fp32"], entry["ratio_to_best"], flush=True
        )
        entry["equal_seconds"] = equal_seconds(list(best.values()), seconds, data, held_out)
        print(kind, seconds, "s each:", entry["equal_seconds"], flush=True)
        if kind == "dit":
            fp32, fastest = medians["rectiflow fp32"], medians[best["rectiflow"].name]
            entry["matrix"] = matrix_share({torch.float32: fp32, torch.bfloat16: fastest})
            rates = sampling(build(DIT).eval(), PeerDiT().eval(), max(3, rounds // 3))
            entry["sampling_images_per_second"] = {name: statistics.median(values) for name, values in rates.items()}
            entry["sampling_each"] = rates
            print(entry["matrix"], entry["sampling_images_per_second"], flush=True)
        result[kind] = entry
    common.write("throughput", result)


if __name__ == "__main__":
    main(*(float(a) if "." in a else int(a) for a in sys.argv[1:]))
