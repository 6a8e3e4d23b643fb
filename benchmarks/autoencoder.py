"""The autoencoder beside diffusers' AutoencoderKL of one layout, in one run: python benchmarks/autoencoder.py [ROUNDS]

Both train the same objective with the same optimiser on the same pictures, decode the same latents and encode the same
pictures, in the same precision. In each of ROUNDS rounds each takes its turn at each task, the order turning round;
medians count.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

import common
from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digit_scenes
from rectiflow.data.images import to_float

BATCH, SIDE, RATE, GROUPS = 16, 64, 1e-4, (32, 8)
TASKS = ("train", "decode", "encode")


def theirs(config: AutoencoderConfig) -> nn.Module:
    """diffusers' of the same layout."""
    levels = len(config.widths)
    return AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        use_quant_conv=config.quantised,
        use_post_quant_conv=config.quantised,
    )


@dataclass
class Side:
    """One network in one precision."""

    owner: str
    network: nn.Module
    bfloat16: bool
    x: Tensor
    draw: Tensor
    rates: dict[str, list[float]] = field(default_factory=lambda: {task: [] for task in TASKS})

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=RATE, fused=True)

    def decoded(self, latents: Tensor) -> Tensor:
        out = self.network.decode(latents)
        return out.sample if self.owner == "diffusers" else out

    def train(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            if self.owner == "diffusers":
                posterior = self.network.encode(self.x).latent_dist
                y = self.decoded(posterior.mean + posterior.std * self.draw)
            else:
                y, _ = self.network(self.x, self.draw)
            loss = F.l1_loss(y.float(), self.x)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def decode(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            self.decoded(self.draw)

    def encode(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            self.network.encode(self.x)

    def turn(self, task: str) -> None:
        call: Callable[[], None] = getattr(self, task)
        began = time.perf_counter()
        call()
        self.rates[task].append(round(BATCH / (time.perf_counter() - began), 2))


def pair(config: AutoencoderConfig, bfloat16: bool) -> list[Side]:
    """Ours and theirs, each with its own weights; the time does not depend on them."""
    index = torch.arange(BATCH)
    x = F.interpolate(to_float(digit_scenes().train.fetch(index)), size=(SIDE, SIDE), mode="bilinear")
    small = SIDE // config.factor
    draw = Key(0, "draw").normal(index, (config.latent_channels, small, small))
    torch.manual_seed(0)
    return [Side("rectiflow", VAE(config), bfloat16, x, draw), Side("diffusers", theirs(config), bfloat16, x, draw)]


def measured(sides: list[Side], rounds: int) -> dict[str, object]:
    """Medians of the rates, their ratio, and every single rate, by task."""
    for task in TASKS:
        for side in sides:
            getattr(side, task)()  # warm-up
    for number in range(rounds):
        for task in TASKS:
            for side in sides if number % 2 == 0 else sides[::-1]:
                side.turn(task)
    result: dict[str, object] = {}
    for task in TASKS:
        medians = {side.owner: round(statistics.median(side.rates[task]), 2) for side in sides}
        result[task] = {
            "images_per_second": medians,
            "ratio": round(medians["rectiflow"] / medians["diffusers"], 3),
            "each": {side.owner: side.rates[task] for side in sides},
        }
    return result


def main(rounds: int = 11) -> None:
    result: dict[str, object] = {
        "settings": {
            "batch": BATCH,
            "side": SIDE,
            "rounds": rounds,
            "optimiser": f"fused AdamW {RATE}",
            "loss": "L1",
            "layout": AutoencoderConfig(channels=3).model_dump(mode="json", exclude={"groups"}),
        }
    }
    for groups in GROUPS:
        config = AutoencoderConfig(channels=3, groups=groups)
        for precision in ("bf16", "fp32"):
            sides = pair(config, precision == "bf16")
            parameters = {side.owner: sum(p.numel() for p in side.network.parameters()) for side in sides}
            assert len(set(parameters.values())) == 1, parameters
            tasks = measured(sides, rounds)
            result[f"{precision}, {groups} groups"] = {"parameters": parameters, **tasks}
            brief = {task: {k: v for k, v in tasks[task].items() if k != "each"} for task in TASKS}  # type: ignore[attr-defined]
            print(precision, groups, "groups:", brief, flush=True)
    common.write("autoencoder", result)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
