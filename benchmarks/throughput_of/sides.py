"""A network of one owner under one set of settings, in training; several take turns."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.recipes.digits import digits
from rectiflow.training.blocks import apply_switches
from throughput_of.counted import now, seen

OWNERS = ("rectiflow", "diffusers")
CPU = torch.device("cpu")
Data = tuple[Tensor, Condition]


@dataclass(frozen=True)
class Setting:
    """How a network is trained.

    Args:
        bfloat16: by autocast.
        compiled: ours block by block, as `compile=true` does; diffusers' as a whole, which gives its compiler most.
        channels_last: ours the kernels, as `channels_last=true` does; diffusers' the network and its pictures.
        fused: whether AdamW is torch's fused one, or as torch makes it if nothing is said.
        written: whether their attention is their `AttnProcessor`, products and a softmax as ours is in bfloat16 on
            a CPU, in place of torch's fused one, whose backward pass is slow there.
    """

    bfloat16: bool = False
    compiled: bool = False
    channels_last: bool = False
    fused: bool = True
    written: bool = False

    @property
    def words(self) -> str:
        if self == DEFAULT:
            return "default"
        names = ["bf16" if self.bfloat16 else "fp32"]
        names += [name for name in ("compiled", "channels_last") if getattr(self, name)]
        names += ["attention as written"] if self.written else []
        return " ".join(names if self.fused else [*names, "plain AdamW"])


# float32, nothing compiled, AdamW as torch makes it: what diffusers' examples begin from.
DEFAULT = Setting(fused=False)


def has_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "SVE"))


def settings_of(owner: str, convolutions: bool, bfloat16: bool | None = None, written: bool = False) -> list[Setting]:
    """What might be fastest on this machine; of diffusers its default too.

    Args:
        owner: of `OWNERS`.
        convolutions: whether the network is made of them.
        bfloat16: whether this machine computes in it; None asks the machine.
        written: whether the attention of diffusers' network can be set to be as written.
    """
    precisions = [False, True] if (has_bfloat16() if bfloat16 is None else bfloat16) else [False]
    found = [Setting(bfloat16=low, compiled=compiled) for low in precisions for compiled in (False, True)]
    if convolutions:
        found += [Setting(precisions[-1], compiled, True) for compiled in (False, True)]
    if owner != "diffusers":
        return found
    more = [replace(setting, written=True) for setting in found if setting.bfloat16 and written]
    return [DEFAULT, *found, *more]


def prepared(network: nn.Module, owner: str, setting: Setting) -> None:
    """Do to a network what the setting says."""
    if owner == "rectiflow":
        switches = {"compile": setting.compiled, "channels_last": setting.channels_last}
        apply_switches(network, digits().model_copy(update=switches))
        return
    if setting.written:
        for part in network.modules():
            if isinstance(part, Attention):
                part.set_processor(AttnProcessor())
    if setting.channels_last:
        network.to(memory_format=torch.channels_last)
    if setting.compiled:
        network.compile()


def begun_to_compile() -> None:
    """Forget what was compiled, and let as much be compiled as there are sides.

    torch compiles one piece of code for eight kinds of inputs and no more, and the sides of one owner share theirs.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.accumulated_recompile_limit = 1024


def adamw(network: nn.Module, rate: float, setting: Setting) -> torch.optim.AdamW:
    fused = {"fused": True} if setting.fused else {}
    return torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0, **fused)


class Turns(Protocol):
    """What takes turns."""

    name: str
    rates: list[float]  # images a second of each turn

    def turn(self) -> None: ...


@dataclass
class Side:
    """A flow with one of the networks."""

    owner: str
    make: Callable[[], nn.Module]
    setting: Setting
    data: Data
    batch: int
    rate: float = 5e-4
    steps_a_turn: int = 2
    device: torch.device = CPU
    rates: list[float] = field(default_factory=list)
    step: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.name = f"{self.owner} {self.setting.words}"
        self.network = self.make().to(self.device)
        prepared(self.network, self.owner, self.setting)
        self.flow = Flow(self.network)
        self.optimiser = adamw(self.network, self.rate, self.setting)

    def renewed(self, rate: float) -> "Side":
        """The same from fresh weights, at another learning rate."""
        return Side(self.owner, self.make, self.setting, self.data, self.batch, rate, device=self.device)

    def drawn(self, count: int, key: str, number: int) -> tuple[Tensor, Tensor]:
        """Times and noise."""
        index = torch.arange(count) + number * self.batch
        t, z = Key(0, f"{key} t").uniform(index), Key(0, f"{key} z").normal(index, self.data[0].shape[1:])
        return t.to(self.device), z.to(self.device)

    def loss(self, data: Data, drawn: tuple[Tensor, Tensor]) -> Tensor:
        (x, condition), (t, z) = data, drawn
        if self.owner == "diffusers" and self.setting.channels_last:
            x, z = (a.contiguous(memory_format=torch.channels_last) for a in (x, z))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bfloat16):
            return flow_matching_loss(self.flow, x, t, z, condition).mean()

    def batch_of(self, step: int) -> Data:
        chosen = Key(0, "order", step).permutation(len(self.data[0]))[: self.batch].to(self.device)
        return self.data[0][chosen], self.data[1].select(chosen)

    def train(self) -> None:
        """One step; its time is counted, the making of its batch and its draws are not."""
        data, drawn = self.batch_of(self.step), self.drawn(self.batch, "train", self.step)
        began = now(self.device)
        self.optimiser.zero_grad()
        self.loss(data, drawn).backward()
        self.optimiser.step()
        self.spent += now(self.device) - began
        self.step += 1

    def turn(self) -> None:
        before = self.spent
        for _ in range(self.steps_a_turn):
            self.train()
        self.rates.append(self.steps_a_turn * self.batch / (self.spent - before))

    def held_out(self, data: Data) -> float:
        self.network.eval()
        with torch.no_grad():
            loss = float(self.loss(data, self.drawn(len(data[0]), "held out", 0)))
        self.network.train()
        return loss

    def facts(self) -> dict[str, object]:
        """Size and work of a network that is not compiled."""
        x, condition = self.data[0][:1], self.data[1].select(slice(0, 1))
        found = seen(lambda: self.loss((x, condition), self.drawn(1, "train", 0)))
        self.network.zero_grad()
        return {
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "gflop_per_image": round(found.flops / 1e9, 3),
        }


def alternate(sides: Sequence[Turns], rounds: int, between: Callable[[], None] = lambda: None) -> None:
    """Each takes its turn in each round, the order turning round; the first turn, which compiles, does not count."""
    for side in sides:
        side.turn()
        side.rates.clear()
    for number in range(rounds):
        first = number % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            side.turn()
        between()


def compared(rates: dict[str, list[float]]) -> dict[str, object]:
    """Medians, and our best over diffusers' default and over its best, with the least and the most of any round.

    Args:
        rates: of each side by its name, OWNER SETTING, round by round.
    """
    medians = {name: statistics.median(each) for name, each in rates.items()}

    def best(owner: str, of: Callable[[str], bool] = lambda name: True) -> str:
        return max((name for name in medians if name.startswith(owner) and of(name)), key=lambda name: medians[name])

    ours, theirs = best("rectiflow"), best("diffusers")
    plain = best("rectiflow", lambda name: name.split()[1:] in (["fp32"], ["bf16"]))
    default = f"diffusers {DEFAULT.words}"

    def ratio(mine: str, other: str) -> dict[str, object]:
        each = [a / b for a, b in zip(rates[mine], rates[other], strict=True)]
        return {
            "of": mine,
            "over": other,
            "ratio": round(medians[mine] / medians[other], 3),
            "least": round(min(each), 3),
            "most": round(max(each), 3),
        }

    return {
        "images_per_second": {name: round(rate, 2) for name, rate in medians.items()},
        "to_default": ratio(ours, default),
        "to_best": ratio(ours, theirs),
        "as_it_comes_to_default": ratio(plain, default),
        "each": {name: [round(rate, 2) for rate in each] for name, each in rates.items()},
    }
