"""Averages of weights over a training: exponential ones, and ones whose length is a share of the training so far.

A power average (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3) is
θ̂(t) = ∫₀ᵗ p(τ; t) θ(τ) dτ with p(τ; t) = (γ+1)·τ^γ / t^(γ+1). Its length σ_rel, the standard deviation of τ/t, is the
same at every t: σ_rel² = (γ+1) / ((γ+2)²·(γ+3)).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import nn

from rectiflow.training.config import EmaConfig
from rectiflow.training.shards import local


def relative_length(gamma: float) -> float:
    """σ_rel of the power average with exponent γ > −1."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def exponent(length: float) -> float:
    """γ ≥ 0 of the power average of length σ_rel in (0, 1/√12]."""
    # The largest root of γ³ + 7γ² + (16 − σ_rel⁻²)γ + 12 − σ_rel⁻² = 0.
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class WeightAverage(ABC):
    """Weights that follow those of a module that is trained. Subclasses are final.

    Attributes:
        module: the average that becomes the model.
        by_length: the power averages by their length σ_rel; none if it is not a power average.
    """

    module: nn.Module
    by_length: Mapping[float, nn.Module]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All averages that are kept."""
        return tuple(self.by_length.values()) or (self.module,)

    @abstractmethod
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights after optimiser step `step` (from 0)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What going on needs, in plain mappings of tensors."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""


@final
class Ema(WeightAverage):
    """The exponential one: θ̄ ← d·θ̄ + (1−d)·θ, with d = min(decay, (1+k)/(10+k)) at step k.

    Args:
        module: the module that is trained.
        decay: in [0, 1); 0 is a copy of the newest weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.module, self.by_length = decay, _follower(module), {}

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights after optimiser step `step` (from 0)."""
        _move(self.module, module, 1 - min(self.decay, (1 + step) / (10 + step)))

    def state(self) -> dict[str, Any]:
        """The averaged weights."""
        return self.module.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.module.load_state_dict(state)


@final
class PowerEma(WeightAverage):
    """Power averages of several lengths: θ̂ₜ = βₜ·θ̂ₜ₋₁ + (1−βₜ)·θₜ with βₜ = (1−1/t)^(γ+1) after t steps.

    In the sum, θᵢ has the weight ∫ p(τ; t) dτ over (i−1, i]: this is the integral above for weights that stay as they
    are during a step. The initial weights have none.

    Args:
        module: the module that is trained.
        lengths: σ_rel of each, in (0, 1/√12); the first becomes the model.
    """

    def __init__(self, module: nn.Module, lengths: tuple[float, ...]) -> None:
        self.by_length = {length: _follower(module) for length in lengths}
        self.module = self.by_length[lengths[0]]
        self._powers = {length: exponent(length) + 1 for length in lengths}

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights after optimiser step `step` (from 0)."""
        for length, average in self.by_length.items():
            _move(average, module, 1 - (step / (step + 1)) ** self._powers[length])

    def state(self) -> dict[str, Any]:
        """The averaged weights of each length."""
        return {str(length): average.state_dict() for length, average in self.by_length.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        for length, average in self.by_length.items():
            average.load_state_dict(state[str(length)])


def weight_average(module: nn.Module, config: EmaConfig) -> WeightAverage:
    """The average that `config` names, of the weights that `module` has now."""
    return Ema(module, config.decay) if config.kind == "exponential" else PowerEma(module, config.lengths)


def _follower(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _move(average: nn.Module, module: nn.Module, share: float) -> None:
    """Put `share` of the weights of `module` into the average; buffers are those of `module`."""
    with torch.no_grad():
        torch._foreach_lerp_([local(p) for p in average.parameters()], [local(p) for p in module.parameters()], share)
        for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
