"""Training of the autoencoder beside diffusers' AutoencoderKL of the same layout, alone and against a discriminator.

Both are trained against the same discriminator (ours), by the same losses in the same order: hinge losses, the adaptive
weight by the gradients at the decoder's last kernels, and each its own optimiser.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoencoder
from kept import Result
from rectiflow.autoencoders.adversarial import adaptive_weight, generator_hinge, hinge
from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.discriminator import Discriminator
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digit_scenes
from rectiflow.data.images import to_float
from throughput_of.counted import now, seen
from throughput_of.sides import (
    CPU,
    OWNERS,
    Setting,
    adamw,
    alternate,
    begun_to_compile,
    compared,
    prepared,
    settings_of,
)

BATCH, SIDE, RATE, WEIGHT = 16, 64, 1e-4, 0.5
CONFIG = AutoencoderConfig(channels=3)


def batch() -> tuple[Tensor, Tensor]:
    """Pictures and draws of their latents."""
    index, small = torch.arange(BATCH), SIDE // CONFIG.factor
    x = F.interpolate(to_float(digit_scenes().train.fetch(index)), size=(SIDE, SIDE), mode="bilinear")
    return x, Key(0, "draw").normal(index, (CONFIG.latent_channels, small, small))


@dataclass
class VaeSide:
    """An autoencoder of one owner under one setting."""

    owner: str
    setting: Setting
    adversarial: bool
    x: Tensor
    draw: Tensor
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.name = f"{self.owner} {self.setting.words}"
        self.network: nn.Module = VAE(CONFIG) if self.owner == "rectiflow" else autoencoder.theirs(CONFIG)
        if self.owner == "diffusers" and self.setting.compiled:
            # Its call draws from the posterior by itself; what it is made of is compiled, as a whole each.
            self.network.encoder.compile()
            self.network.decoder.compile()
            prepared(self.network, self.owner, Setting(channels_last=self.setting.channels_last))
        else:
            prepared(self.network, self.owner, self.setting)
        self.optimiser = adamw(self.network, RATE, self.setting)
        self.discriminator = Discriminator(3, 32)
        self.adversary = adamw(self.discriminator, RATE, self.setting)
        if self.owner == "diffusers" and self.setting.channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)

    @property
    def last(self) -> list[Tensor]:
        """The kernels that make the pixels."""
        return [self.network.decoder.conv_out.weight]

    def made(self) -> Tensor:
        if self.owner == "rectiflow":
            return self.network(self.x, self.draw)[0]
        posterior = self.network.encode(self.x).latent_dist
        return self.network.decode(posterior.mean + posterior.std * self.draw).sample

    def loss(self) -> tuple[Tensor, Tensor]:
        """The autoencoder's, and what it made."""
        made = self.made()
        loss = F.l1_loss(made.float(), self.x)
        if self.adversarial:
            fool = generator_hinge(self.discriminator(made)).mean()
            loss = loss + WEIGHT * adaptive_weight(loss, fool, self.last) * fool
        return loss, made.detach()

    def train(self) -> None:
        """A step of the autoencoder and, if there is one, of its adversary."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.setting.bfloat16):
            self.discriminator.requires_grad_(False)
            loss, made = self.loss()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        if self.adversarial:
            self.discriminator.requires_grad_(True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.setting.bfloat16):
                real, fake = self.discriminator(torch.cat([self.x, made.to(self.x.dtype)])).chunk(2)
                game = hinge(real, fake).mean()
            self.adversary.zero_grad()
            game.backward()
            self.adversary.step()

    def turn(self) -> None:
        began = now(CPU)
        self.train()
        self.rates.append(BATCH / (now(CPU) - began))

    def facts(self) -> dict[str, object]:
        found = seen(lambda: F.l1_loss(self.made().float(), self.x))
        self.network.zero_grad()
        return {
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "gflop_per_image": round(found.flops / BATCH / 1e9, 3),
        }


def training(rounds: int) -> Result:
    """Alone under all settings; against a discriminator under those that keep the graph, which compiling gives up."""
    result: Result = {
        "settings": {
            "batch": BATCH,
            "side": SIDE,
            "rounds": rounds,
            "optimiser": f"AdamW {RATE}",
            "layout": CONFIG.model_dump(mode="json"),
        }
    }
    x, draw = batch()
    for name, adversarial in (("alone", False), ("against a discriminator", True)):
        begun_to_compile()
        sides = [
            VaeSide(owner, setting, adversarial, x, draw)
            for setting in settings_of("diffusers", convolutions=True)
            for owner in OWNERS
            if setting in settings_of(owner, convolutions=True) and not (adversarial and setting.compiled)
        ]
        result.setdefault("facts", {side.owner: side.facts() for side in sides if side.setting == Setting()})
        alternate(sides, rounds)
        result[name] = compared({side.name: side.rates for side in sides})
    return result
