"""DiT-XL/2 on a GPU, ours beside diffusers': bfloat16 by autocast, flash attention, compiled and not.

Utilisation is to the rate of the step's own products done one by one on this GPU, and to its maker's stated rate.
"""

import statistics
from contextlib import suppress

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kept import Result
from peers import PeerDiT
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig
from rectiflow.networks.presets import preset
from rectiflow.plan.gpus import GPUS
from rectiflow.training.watch import matrix_rate
from throughput_of.counted import Rates, seen
from throughput_of.sides import DEFAULT, OWNERS, Setting, Side, alternate, begun_to_compile, compared
from throughput_of.use import gflops, noise, of_side

AIM = 0.5
SHAPE, CLASSES, BATCHES = (4, 32, 32), 1000, (128, 64, 32, 16)
CONFIG = DiTConfig(channels=4, classes=CLASSES, **preset("dit", "XL/2"))
MAKES = {"rectiflow": lambda: build(CONFIG), "diffusers": lambda: PeerDiT(16, 72, 28, SHAPE[-1], CLASSES)}

# Not compiled first, so that what a step does is seen; float32, of diffusers' default, has no flash attention.
KINDS = [
    *((owner, setting) for setting in (Setting(True), Setting(True, True)) for owner in OWNERS),
    ("diffusers", DEFAULT),
]
BACKENDS = {True: [SDPBackend.FLASH_ATTENTION], False: [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]}


def key_of(name: str) -> str | None:
    """What `rectiflow plan` calls a GPU of this name; None if it does not know it."""
    words = name.lower().replace("-", " ").split()
    found = [key for key in GPUS if set(key.split("-")) <= set(words)]
    return max(found, key=len, default=None)


def file_name(name: str) -> str:
    """Of the results of a GPU of this name."""
    return f"throughput-{key_of(name) or name.lower().replace(' ', '-')}.json"


def fitting(device: torch.device) -> int:
    """The largest batch that diffusers' and ours can take a step of, not compiled."""
    for batch in BATCHES:
        with suppress(torch.OutOfMemoryError):
            for owner in OWNERS:
                _one(owner, Setting(True), batch, device).train()
                torch.cuda.empty_cache()
            return batch
        torch.cuda.empty_cache()
    raise SystemExit("this GPU has too little memory for DiT-XL/2")


def _one(owner: str, setting: Setting, batch: int, device: torch.device, rate: float = 1e-4) -> Side:
    return Side(owner, MAKES[owner], setting, noise(SHAPE, 2 * batch, CLASSES, device), batch, rate, 4, device)


def training(rounds: int) -> Result:
    """Each side by itself, since they share the GPU's memory: rounds of four steps, after those that compile."""
    begun_to_compile()
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    stated = GPUS[key_of(name)].bfloat16 if key_of(name) else None
    rates, sides, products = {}, {}, {}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        batch = fitting(device)
    for owner, setting in KINDS:
        with sdpa_kernel(BACKENDS[setting.bfloat16]):
            torch.cuda.reset_peak_memory_stats()
            side = _one(owner, setting, batch, device)
            if setting.bfloat16 and owner not in products:
                products[owner] = _products(side)
                torch.cuda.reset_peak_memory_stats()
            alternate([side], rounds)
        rates[side.name] = side.rates
        if setting.bfloat16:
            sides[side.name] = _told(side, *products[owner], stated)
        print(side.name, round(statistics.median(side.rates), 1), flush=True)
        del side
        torch.cuda.empty_cache()
    return {
        "gpu": name,
        "settings": {"network": CONFIG.model_dump(mode="json"), "batch": batch, "shape": SHAPE, "rounds": rounds},
        "aim": AIM,
        "stated_gflops": None if stated is None else round(stated / 1e9),
        "large_square_gflops": round(matrix_rate(device, "bfloat16") / 1e9),
        "products_gflops": {owner: gflops(each) for owner, (each, _) in products.items()},
        "sides": sides,
        **compared(rates),
    }


def _products(side: Side) -> tuple[Rates, int]:
    found = seen(lambda: side.loss(side.batch_of(0), side.drawn(side.batch, "train", 0)))
    side.network.zero_grad()
    rates = Rates(found.counts, side.device)
    rates.turn(5)
    return rates, found.flops


def _told(side: Side, rates: Rates, flops: int, stated: float | None) -> Result:
    told = of_side(side, rates, flops)
    per_second = flops * statistics.median(side.rates) / side.batch
    by_maker = {} if stated is None else {"utilisation_of_stated": round(per_second / stated, 4)}
    return {**told, **by_maker, "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)}
