"""What of a run is measured beside its losses: the norm of its weights, memory, and use of the machine."""

import os
import sys
import time
from collections.abc import Hashable
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import mean
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from rectiflow.base import ranks
from rectiflow.base.autocast import autocast
from rectiflow.training.config import TrainingConfig
from rectiflow.training.parts import parts
from rectiflow.training.shards import complete
from rectiflow.training.stage import Stage
from rectiflow.training.stepper import alone

_MEASURING = 0.3  # seconds
_SMALLEST, _LARGEST = 256, 8192  # sides of the matrices that a machine is measured by
_LONG_ENOUGH = 0.01  # seconds of a product, so that its start is nothing beside it
_MEGABYTE = 1e6
_LOOKED_AT = 64  # steps
_KINDS = 8
# torch counts attention on a GPU alone; on a CPU it is as much.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}


@final
class Watch:
    """Measures what a line of metrics says beside losses and speed. Every process of a job has to call it alike.

    Args:
        stage: what is trained.
        config: the run; its precision is resolved.
        device: where the stage lies.
    """

    def __init__(self, stage: Stage, config: TrainingConfig, device: torch.device) -> None:
        self.stage, self.config, self.device = stage, config, device
        self._flops: dict[Hashable, float] = {}
        self._rate, self._told = 0.0, 0

    def begin(self) -> None:
        """Count the FLOPs of a step of each kind, by one that changes no weights, and measure the machine.

        To be called before the weights are spread over processes.
        """
        steps = self.config.steps
        looked_at = sorted({*range(min(steps, _LOOKED_AT)), *range(0, steps, -(-steps // _LOOKED_AT)), steps - 1})
        # Whatever cannot be counted, in whatever way, is no reason not to train: a run has no utilisation then.
        with suppress(Exception):
            for step in looked_at:
                kind = self.stage.kind(step)
                if kind not in self._flops and len(self._flops) < _KINDS:
                    self._flops[kind] = self._count(step)
            self._rate = matrix_rate(self.device, self.config.precision)
        self.stage.module.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def flops(self, step: int) -> float:
        """FLOPs of `step` over all processes, a multiplication and its addition as two; 0 if they are not known.

        A kind of step that was not met in the beginning counts as the mean of the others.
        """
        known = self._flops.get(self.stage.kind(step))
        return mean(self._flops.values()) if known is None and self._flops else known or 0.0

    def at_log(self, step: int, steps_per_second: float) -> dict[str, float]:
        """Norm of the weights, utilisation and memory, after `step` steps, of which the newest went at this speed."""
        found = {"weight_norm": weight_norm(self.stage.module)}
        since = range(max(self._told, step - _LOOKED_AT) if self._told < step else max(0, step - 1), step)
        self._told = step
        if self._rate and since and (flops := mean(self.flops(each) for each in since)):
            found["utilisation"] = flops * steps_per_second / (self._rate * ranks.world())
        return found | memory(self.device)

    def _count(self, step: int) -> float:
        """FLOPs of a step, by those of this process's first part of its batch."""
        counter = flop_counter()
        part = parts(self.config)[0]
        # What is compiled cannot be looked into.
        with torch.compiler.set_stance("force_eager"), counter:
            for turn in self.stage.turns_at(step):
                with alone(self.stage.module.get_submodule(turn), self.stage.module):
                    with autocast(self.device, self.config.precision):
                        loss = self.stage.loss(step, part, turn)
                    loss.backward()
        return counter.get_total_flops() * self.config.batch / (part.stop - part.start)


def flop_counter() -> FlopCounterMode:
    """Counts the FLOPs of all that is done while it is entered, on a CPU as on a GPU."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= _CPU_ATTENTION
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    return counter


@final
class _Untracked:
    """Stands in for torch's tracker of modules, whose hooks break losses with gradients of gradients in them."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *problem: object) -> None:
        pass


def weight_norm(module: nn.Module) -> float:
    """‖θ‖ of all that is trained; of weights cut up among processes, each has to ask."""
    return float(complete(torch.nn.utils.get_total_norm([p.detach() for p in module.parameters()])))


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in MB (10⁶ bytes), now and at its most so far; of a CUDA device what torch has taken."""
    found = {}
    status = Path("/proc/self/statm")
    with suppress(OSError, ValueError, IndexError):
        found["memory_mb"] = int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE
    with suppress(ImportError):  # no such module on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["memory_peak_mb"] = peak * (1 if sys.platform == "darwin" else 1024) / _MEGABYTE
    if device.type == "cuda":
        found["gpu_memory_mb"] = torch.cuda.memory_allocated(device) / _MEGABYTE
        found["gpu_memory_peak_mb"] = torch.cuda.max_memory_allocated(device) / _MEGABYTE
    return found


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOPs a second of a product of two large square matrices here: the best of a third of a second, measured once.

    Args:
        device: where.
        precision: "float32" or "bfloat16".
    """
    return _matrix_rate(device, precision, torch.get_num_threads())


@cache
def _matrix_rate(device: torch.device, precision: str, threads: int) -> float:
    side, best, began = _SMALLEST, 0.0, time.perf_counter()
    left = right = _matrix(side, device, precision)
    with torch.no_grad():
        torch.mm(left, right)  # kernels are loaded at the first call
        while time.perf_counter() - began < _MEASURING:
            _wait(device)
            start = time.perf_counter()
            torch.mm(left, right)
            _wait(device)
            seconds = time.perf_counter() - start
            best = max(best, 2 * side**3 / seconds)
            if seconds < _LONG_ENOUGH and side < _LARGEST:
                side *= 2
                left = right = _matrix(side, device, precision)
                torch.mm(left, right)
    return best


def _matrix(side: int, device: torch.device, precision: str) -> Tensor:
    # Not from torch's generator, which is the training's.
    return torch.full((side, side), 0.5, device=device, dtype=getattr(torch, precision))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
