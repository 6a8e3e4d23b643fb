"""The precision that a network computes in."""

import torch

from rectiflow.base.errors import unknown


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes: "bfloat16", or "float32", which is no autocast at all.

    Raises:
        InputError: another precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise unknown("precision", precision, ("float32", "bfloat16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
