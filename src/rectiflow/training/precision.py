"""Devices and precision: chosen by what this machine has and by what was measured on it."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from rectiflow.base.autocast import autocast
from rectiflow.base.errors import InputError, unknown
from rectiflow.base.memory_full import is_full

_REPEATS = 5
_GAIN = 1.05


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: this machine, or this build of torch, has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, here in present.items() if here)
    if name not in present:
        raise unknown("device", name, ["auto", *present])
    if not present[name]:
        known = ", ".join(kind for kind, here in present.items() if here)
        raise InputError(f"device {name} is not available to this torch ({torch.__version__}); available: {known}.")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device, step: Callable[[], None]) -> tuple[str, str]:
    """Choose between float32 and bfloat16 autocast.

    Args:
        name: "auto", or the precision itself.
        device: where steps run.
        step: one forward and backward pass that changes no weights.

    Returns:
        The precision and, in words, what it was chosen from.
    """
    if name != "auto":
        return name, "as asked"
    lack = lacks_bfloat16(device)
    if lack:
        return "float32", lack
    seconds = _measure(device, ("float32", "bfloat16"), step)
    # Where neither fits, bfloat16 is the one that may, once a step is shared or taken in more parts.
    faster = math.isinf(seconds["float32"]) or seconds["float32"] > _GAIN * seconds["bfloat16"]
    told = {precision: "does not fit" if math.isinf(s) else f"{1000 * s:.0f} ms" for precision, s in seconds.items()}
    words = ", ".join(f"{precision} {about}" for precision, about in told.items())
    return ("bfloat16" if faster else "float32"), f"measured per step: {words}"


def lacks_bfloat16(device: torch.device) -> str:
    """Why bfloat16 is not even tried there, in words; empty if it is."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU has no bfloat16"
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return "this CPU has no bfloat16 arithmetic"
    return ""


def _measure(device: torch.device, precisions: Sequence[str], step: Callable[[], None]) -> dict[str, float]:
    """Median seconds of a step in each precision, taken in turn so that a busy moment falls on all alike.

    A step that there is no memory for takes for ever.
    """
    seconds: dict[str, list[float]] = {precision: [] for precision in precisions}
    for _ in range(_REPEATS + 1):
        for precision in precisions:
            if math.inf not in seconds[precision]:
                seconds[precision].append(_seconds(device, precision, step))
    # The first one warms up.
    return {p: math.inf if math.inf in values else median(values[1:]) for p, values in seconds.items()}


def _seconds(device: torch.device, precision: str, step: Callable[[], None]) -> float:
    start = time.perf_counter()
    try:
        with autocast(device, precision):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        return math.inf
    return time.perf_counter() - start
