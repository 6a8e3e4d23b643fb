"""Sampling with the transformer of `networks` beside diffusers': 32 guided pictures in 50 steps."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from kept import Result
from peers import CLASSES
from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import Flow
from rectiflow.sampling.cores import over_cores
from rectiflow.sampling.guidance import ClassifierFree
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver
from throughput_of.networks import SUBJECTS
from throughput_of.sides import OWNERS, Setting, begun_to_compile, compared, has_bfloat16, prepared

COUNT, STEPS = 32, 50
KINDS = ("dit", "unet")


def ours(network: nn.Module, setting: Setting, z: Tensor, labels: Tensor) -> None:
    """Euler; as the pipeline does it, the samples are shared out among cores. Compiled they stay together."""
    flow = Flow(network)

    def part(index: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
            return sample(flow, z[index], solver("euler"), STEPS, Condition(labels[index]), ClassifierFree(1.0))

    index = torch.arange(len(z))
    if setting.compiled:
        with torch.no_grad():
            part(index)
    else:
        over_cores(part, list(index.chunk(torch.get_num_threads())))


def theirs(network: nn.Module, setting: Setting, z: Tensor, labels: Tensor) -> None:
    """Their DDIM scheduler, as their DiT pipeline does it; states are of the network's own precision."""
    scheduler, count = DDIMScheduler(clip_sample=False), len(z)
    scheduler.set_timesteps(STEPS)
    classes = torch.cat([labels, torch.full_like(labels, -1)])
    x = z.to(next(network.parameters()).dtype)
    x = x.contiguous(memory_format=torch.channels_last) if setting.channels_last else x
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
        for t in scheduler.timesteps:
            noise = network(torch.cat([x, x]), (t / 1000).expand(2 * count), Condition(classes))
            given, null = noise.chunk(2)
            x = scheduler.step(null + 2.0 * (given - null), t, x).prev_sample


def calls_of(kind: str, count: int) -> dict[str, Callable[[], None]]:
    """What is timed, by owner and setting. The weights are random: time does not depend on them."""
    subject, labels = SUBJECTS[kind], torch.arange(count) % CLASSES
    z = Key(0, "z").normal(torch.arange(count), subject.shape)
    low = has_bfloat16()
    settings = [Setting(), *([Setting(True)] if low else []), Setting(low, True)]
    if subject.convolutions:
        settings.append(Setting(low, True, True))
    calls: dict[str, Callable[[], None]] = {}
    for setting in settings:
        for owner, way in zip(OWNERS, (ours, theirs), strict=True):
            network = subject.make(owner).eval().requires_grad_(False)
            prepared(network, owner, setting)
            # Optimisers say nothing here: plain float32 is what diffusers' pipeline does by itself.
            words = "default" if owner == "diffusers" and setting == Setting() else setting.words
            calls[f"{owner} {words}"] = partial(way, network, setting, z, labels)
    if low:  # as `torch_dtype=torch.bfloat16` loads their models: weights and all that is computed
        for compiled in (False, True):
            network = subject.make("diffusers").eval().requires_grad_(False).to(torch.bfloat16)
            prepared(network, "diffusers", Setting(compiled=compiled))
            name = "bf16 weights compiled" if compiled else "bf16 weights"
            calls[f"diffusers {name}"] = partial(theirs, network, Setting(), z, labels)
    return calls


def sampling(rounds: int) -> Result:
    """Images a second of each way, after one that warms up and compiles."""
    result: Result = {"settings": {"count": COUNT, "steps": STEPS, "guidance": 1.0, "rounds": rounds}}
    for kind in KINDS:
        begun_to_compile()
        calls = calls_of(kind, COUNT)
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name in (list(calls), list(reversed(calls)))[turn % 2]:
                began = time.perf_counter()
                calls[name]()
                rates[name].append(COUNT / (time.perf_counter() - began))
        result[kind] = compared({name: each[1:] for name, each in rates.items()})
        print(kind, {name: round(statistics.median(each[1:]), 2) for name, each in rates.items()}, flush=True)
    return result
