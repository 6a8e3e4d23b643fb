"""Training of four networks beside diffusers' of the same shapes."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kept import Result
from peers import CLASSES, PeerDiT, PeerMMDiT, PeerUNet, PeerVideo
from rectiflow.base.condition import NULL_LABEL, Condition, Text
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import digit_scenes
from rectiflow.data.images import to_float
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, MMDiTConfig, NetworkConfig, StatesInput, UNetConfig, VideoDiTConfig
from throughput_of.sides import DEFAULT, OWNERS, Data, Setting, Side, alternate, begun_to_compile, compared, settings_of

RATES = (5e-4, 2e-3)
LENGTH, FEATURES = 48, 256  # of captions: tokens, and features of the state of a token
CAPTIONS = (StatesInput(features=FEATURES, pooled=FEATURES),)
AIMS = {"to_default": 3.0, "to_best": 1.3}


@dataclass(frozen=True)
class Subject:
    """A network of ours and one of theirs.

    Args:
        title: what both are.
        shape: C, H, W of an input, or C, T, H, W.
        ours: settings of our network.
        theirs: makes the other one.
        batch: samples in a step.
        convolutions: whether it is made of them.
        written: whether their attention can be set to be as written, which does as ours in bfloat16.
        learns: whether it is trained on pictures, so that losses mean something; else on noise.
        aims: ratios that are aimed at.
    """

    title: str
    shape: tuple[int, ...]
    ours: NetworkConfig
    theirs: Callable[[], nn.Module]
    batch: int = 32
    convolutions: bool = False
    written: bool = False
    learns: bool = False
    aims: tuple[str, ...] = ()

    def make(self, owner: str) -> nn.Module:
        return build(self.ours) if owner == "rectiflow" else self.theirs()

    def data(self, start: int, count: int) -> Data:
        """Samples and what the network is told of them."""
        index = torch.arange(start, start + count)
        if self.learns:
            return pictures(self.shape, index)
        states = Key(0, "states").normal(index, (LENGTH, FEATURES))
        text = Text(states, torch.ones(count, LENGTH, dtype=torch.bool), states.mean(1))
        return Key(0, "data").normal(index, self.shape), Condition(torch.full((count,), NULL_LABEL), (text,))


def pictures(shape: tuple[int, ...], index: Tensor) -> Data:
    """Scenes with one of their digits as the label; for 4×16×16 halved, with their brightness as a fourth channel."""
    scenes = digit_scenes().train
    x = to_float(scenes.fetch(index))
    labels = torch.tensor([scene.things[0].digit for scene in scenes.scenes(index)])
    if shape[0] == 4:
        x = nn.functional.avg_pool2d(x, 2)
        x = torch.cat([x, x.mean(1, keepdim=True)], 1)
    return x, Condition(labels)


DIT = DiTConfig(channels=4, classes=CLASSES, patch=2, width=256, depth=6, heads=8)
# Theirs has two blocks a level on the way down and three on the way up; three on each make about as many FLOPs.
UNET = UNetConfig(channels=3, classes=CLASSES, width=64, multipliers=(1, 2, 2), blocks=3, attention=(2,), heads=4)
WIDE = {"classes": 0, "patch": 2, "width": 256, "depth": 6, "heads": 4, "texts": CAPTIONS}
LATENTS, CLIPS = (16, 16, 16), (16, 5, 16, 16)
SUBJECTS = {
    "dit": Subject(
        "transformer, width 256, depth 6, patch 2, 4×16×16",
        (4, 16, 16),
        DIT,
        PeerDiT,
        written=True,
        learns=True,
        aims=("to_default", "to_best"),
    ),
    "unet": Subject(
        "U-Net, widths 64, 128, 128, attention at 16×16, 3×32×32",
        (3, 32, 32),
        UNET,
        PeerUNet,
        convolutions=True,
        written=True,
        learns=True,
        aims=("to_default", "to_best"),
    ),
    "mmdit": Subject(
        f"two streams (SD3Transformer2DModel), width 256, depth 6, patch 2, 16×16×16, captions of {LENGTH} tokens",
        LATENTS,
        MMDiTConfig(channels=16, modulation="block", **WIDE),
        lambda: PeerMMDiT(4, 64, 6, LATENTS, FEATURES),
    ),
    "video": Subject(
        f"clips (CogVideoXTransformer3DModel), width 256, depth 6, patch 2, 16×5×16×16, captions of {LENGTH} tokens",
        CLIPS,
        VideoDiTConfig(channels=16, modulation="block", **WIDE),
        lambda: PeerVideo(4, 64, 6, CLIPS, FEATURES, LENGTH),
        batch=8,
    ),
}


def equal_seconds(sides: list[Side], seconds: float, held_out: Data) -> Result:
    """Held-out loss of each side after as many seconds of its own, from fresh weights, at each of `RATES`."""
    fresh = [side.renewed(rate) for rate in RATES for side in sides]
    for side in fresh:
        side.train()  # warm-up, and compilation
        side.spent = 0.0
    for part in range(1, 6):
        for side in fresh:
            while side.spent < seconds * part / 5:
                side.train()
    return {
        f"{side.name}, rate {side.rate:g}": {"steps": side.step, "held_out_loss": round(side.held_out(held_out), 4)}
        for side in fresh
    }


def training(name: str, rounds: int, seconds: float) -> Result:
    """One network under all settings; then, if it learns, the fastest of either owner for equal seconds.

    Args:
        name: of the subject.
        rounds: turns of each side.
        seconds: of training of each of the fastest.
    """
    begun_to_compile()
    subject = SUBJECTS[name]
    data = subject.data(0, 2048 if subject.learns else 2 * subject.batch)
    settings = {owner: settings_of(owner, subject.convolutions, written=subject.written) for owner in OWNERS}
    sides = [
        Side(owner, lambda owner=owner: subject.make(owner), setting, data, subject.batch)
        for setting in settings["diffusers"]
        for owner in OWNERS
        if setting in settings[owner]
    ]
    facts = {side.owner: side.facts() for side in sides if side.setting == Setting()}
    alternate(sides, rounds)
    result: Result = {
        "title": subject.title,
        "settings": {"batch": subject.batch, "optimiser": f"AdamW {RATES[0]}", "rounds": rounds, "seconds": seconds},
        "diffusers_default": f"float32, not compiled, AdamW as torch makes it ({DEFAULT.words})",
        "facts": facts,
        "aims": {aim: AIMS[aim] for aim in subject.aims},
        **compared({side.name: side.rates for side in sides}),
    }
    if subject.learns and seconds:
        best = [max((s for s in sides if s.owner == o), key=lambda s: statistics.median(s.rates)) for o in OWNERS]
        result["equal_seconds"] = equal_seconds(best, seconds, subject.data(10_000, 256))
    return result
