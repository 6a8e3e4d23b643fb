"""Utilisation: what a step's time is to that of its matrix products alone, done one by one on this machine.

The transformer of preset S/2, width 384. Products are timed between the rounds of training, at the shapes, layouts and
precision in which a step does them, attention as batches of products.
"""

import statistics

import torch

from kept import Result
from peers import CLASSES, PeerDiT
from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig
from rectiflow.networks.presets import preset
from rectiflow.training.watch import matrix_rate
from throughput_of.counted import Rates, seen
from throughput_of.sides import CPU, OWNERS, Data, Setting, Side, alternate, begun_to_compile, has_bfloat16

AIM = 0.6
SHAPE, BATCH = (4, 32, 32), 16
CONFIG = DiTConfig(channels=4, classes=CLASSES, **preset("dit", "S/2"))


def noise(shape: tuple[int, ...], count: int, classes: int, device: torch.device = CPU) -> Data:
    """Samples of no meaning, with labels."""
    index = torch.arange(count)
    return Key(0, "data").normal(index, shape).to(device), Condition((index % classes).to(device))


def of_side(side: Side, rates: Rates, counter: int) -> Result:
    """What a side makes of the machine.

    Args:
        side: trained for some turns.
        rates: of the products of its step.
        counter: FLOPs of its step.
    """
    seconds = side.batch / statistics.median(side.rates)
    return {
        "step_seconds": round(seconds, 4),
        "images_per_second": round(statistics.median(side.rates), 3),
        "gflop_per_step": round(counter / 1e9, 4),
        "gflop_per_second": round(counter / seconds / 1e9, 2),
        "products_seconds": round(rates.seconds(), 4),
        "utilisation": round(counter / seconds / rates.rate(), 4),
        "utilisation_by_linear_maps": round(counter / seconds / rates.rate(["linear"]), 4),
        "each": [round(rate, 3) for rate in side.rates],
    }


def gflops(rates: Rates) -> dict[str, float]:
    """Of products alone, in GFLOP/s."""
    kinds = {"linear maps": ["linear"], "attention": ["attention"], "together": ["linear", "attention"]}
    return {name: round(rates.rate(kind) / 1e9, 1) for name, kind in kinds.items()}


def utilisation(rounds: int) -> Result:
    """Ours and theirs, compiled and not, in the machine's fastest precision."""
    begun_to_compile()
    low, data = has_bfloat16(), noise(SHAPE, 2 * BATCH, CLASSES)
    makes = {"rectiflow": lambda: build(CONFIG), "diffusers": lambda: PeerDiT(6, 64, 12, SHAPE[-1])}
    sides = [
        Side(owner, makes[owner], Setting(low, compiled), data, BATCH, steps_a_turn=1)
        for compiled in (False, True)
        for owner in OWNERS
    ]
    if low:
        written = [Setting(low, compiled, written=True) for compiled in (False, True)]
        sides += [Side("diffusers", makes["diffusers"], setting, data, BATCH, steps_a_turn=1) for setting in written]
    rates = {}
    for side in sides[: len(OWNERS)]:
        found = seen(lambda side=side: side.loss(side.batch_of(0), side.drawn(BATCH, "train", 0)))
        side.network.zero_grad()
        rates[side.owner] = Rates(found.counts, CPU), found.flops

    def products() -> None:
        for each, _ in rates.values():
            each.turn()

    alternate(sides, rounds, products)
    precision = "bfloat16" if low else "float32"
    return {
        "settings": {"network": CONFIG.model_dump(mode="json"), "batch": BATCH, "shape": SHAPE, "rounds": rounds},
        "precision": precision,
        "aim": AIM,
        "parameters": {side.owner: sum(p.numel() for p in side.network.parameters()) for side in sides},
        "products_gflops": {owner: gflops(each) for owner, (each, _) in rates.items()},
        "large_square_gflops": round(matrix_rate(CPU, precision) / 1e9, 1),
        "sides": {side.name: of_side(side, *rates[side.owner]) for side in sides},
    }
