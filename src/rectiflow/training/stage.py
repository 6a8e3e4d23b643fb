"""The interface of what one kind of training optimises."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.images import ImageSet
from rectiflow.training.config import OptimiserConfig, TrainingConfig


class Stage(ABC):
    """A module, its loss, and what a run wants to know and keep of it. All of it is a function of the step.

    Attributes:
        config: the run, with what it leaves open taken from the data.
        module: what is trained.
        turns: names of the submodules that a step trains one after another, each against its own loss; "" is all.
        samples_per_step: training samples that a step takes.
        waited: seconds that `loss` has spent waiting for data so far.
        observed: what the newest call of `loss` saw beside the loss, by name; scalars, detached.
        may_leave_out: whether some steps leave a part of `module` without a gradient, as those of stills do with layers
            along time.
    """

    config: TrainingConfig
    module: nn.Module
    turns: tuple[str, ...] = ("",)
    samples_per_step: int
    waited: float = 0.0
    observed: Mapping[str, Tensor] = {}
    may_leave_out: bool = True
    _detour: int = 0

    @abstractmethod
    def loss(self, step: int, part: slice = slice(None), turn: str = "") -> Tensor:
        """Mean loss over the batch of `step`, with gradients for the submodule `turn`; a scalar.

        With `part`, a slice of positions in the batch, the share that these have in it: the shares of all parts add up
        to the mean.
        """

    @abstractmethod
    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Losses of `module` (the trained one or its average) on held-out data, by name; the same draws every time."""

    @abstractmethod
    def preview(self, module: nn.Module) -> Image.Image:
        """A picture of what `module` makes now; the same draws every time."""

    @abstractmethod
    def save(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write `module` as a model folder, after `step` steps."""

    def origin(self, step: int) -> dict[str, Any]:
        """What a model says of its training: recipe, steps, and the rate of its clips if it was given one."""
        data = self.config.data
        rate = {"rate": data.rate} if data.frames > 1 and data.rate else {}
        return {"recipe": self.config.recipe, "step": step, "steps": self.config.steps, **rate}

    def bridge_from(self, source: ImageSet) -> None:
        """Start from pictures of `source`, of the shape of the data, in place of noise.

        Raises:
            InputError: nothing of this kind starts from anything.
        """
        raise InputError(f"recipe {self.config.recipe} starts from no other pictures; leave data.source_dir out.")

    @property
    def seed(self) -> int:
        """Of the draws and the order of training: the run's, until it takes a detour."""
        return self.config.seed if not self._detour else _other_seed(self.config.seed, self._detour)

    def detour(self, number: int) -> None:
        """Train on with the data in another order and with other draws: those of the detour of that number.

        Detour 0 is the run as it began.
        """
        self._detour = number

    def changes_at(self, step: int) -> bool:
        """Whether losses mean something else from this step on."""
        return False

    def kind(self, step: int) -> Hashable:
        """What tells how much there is to compute in a step: steps of one kind cost alike."""
        return self.turns_at(step)

    def begins(self, turn: str) -> int:
        """The step from which a submodule is trained."""
        return 0

    def turns_at(self, step: int) -> tuple[str, ...]:
        """Those of `turns` that `step` trains; the first of them always."""
        return tuple(turn for turn in self.turns if step >= self.begins(turn))

    def optimiser_of(self, turn: str) -> OptimiserConfig:
        """How a submodule is moved."""
        return self.config.optimiser

    def settle(self, values: Mapping[str, Tensor]) -> None:  # noqa: B027  most stages carry nothing over
        """Take up what a step has shown (losses and observations by name) into what later steps depend on."""

    def alarms(self, means: Mapping[str, float]) -> dict[str, str]:
        """What a person should be told at once, in a line each, by a name that stands for it; told once."""
        return {}


def _other_seed(seed: int, number: int) -> int:
    return int(Key(seed, "detour").words(torch.tensor([number]), 1))
