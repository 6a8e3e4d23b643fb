"""Exponential moving average of weights."""

import copy
from typing import final

import torch
from torch import nn


@final
class Ema:
    """A module whose weights follow another's: θ̄ ← d·θ̄ + (1−d)·θ, with d = min(decay, (1+k)/(10+k)) at step k.

    Args:
        module: the module that is trained.
        decay: in [0, 1); 0 is a copy of the newest weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights after optimiser step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
            for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
                mine.copy_(theirs)
