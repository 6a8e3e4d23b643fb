"""One step of a training: losses, gradients, what moves and what does not. It knows nothing of diffusion."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from rectiflow.base import ranks
from rectiflow.base.autocast import autocast
from rectiflow.base.errors import InputError
from rectiflow.training.config import TrainingConfig
from rectiflow.training.ema import weight_average
from rectiflow.training.guard import Guard
from rectiflow.training.optimiser import fill_state, learning_rate, optimisers
from rectiflow.training.parallel import parallel
from rectiflow.training.parts import parts
from rectiflow.training.shards import complete
from rectiflow.training.stage import Stage


@contextmanager
def alone(trained: nn.Module, module: nn.Module) -> Iterator[None]:
    """Only the parameters of `trained` ask for gradients, of all those of `module`; afterwards as before."""
    inside = {id(p) for p in trained.parameters()}
    held = [p for p in module.parameters() if p.requires_grad and id(p) not in inside]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Step:
    """What came of a step.

    Args:
        values: losses, gradient norm and observations by name, scalars.
        complaint: why it was not taken, in words; empty if it was.
        stop: whether a process of the job was asked to stop.
    """

    values: dict[str, Tensor]
    complaint: str
    stop: bool


@final
class Stepper:
    """Takes the steps of a stage, in this process and all others of the job alike.

    Args:
        stage: what is trained.
        config: the run; its precision is resolved.
        device: where the stage lies.

    Attributes:
        ema: the average of the weights.
        guard: what has been seen of bad steps.
        parallel: how processes share the work.
    """

    def __init__(self, stage: Stage, config: TrainingConfig, device: torch.device) -> None:
        self.stage, self.config, self.device = stage, config, device
        self.guard = Guard(config.guard)
        self.ema = weight_average(stage.module, config.ema)
        self.parallel = parallel(config, device)
        self.parallel.spread(stage, self.ema.modules)
        self.turns = {
            turn: optimisers(stage.module.get_submodule(turn), stage.optimiser_of(turn)) for turn in stage.turns
        }
        for optimiser in self._optimisers:
            fill_state(optimiser)

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [optimiser for group in self.turns.values() for optimiser in group]

    def take(self, step: int, asked: Callable[[], bool] = lambda: False) -> Step:
        """Take a step, unless it would do harm.

        Args:
            step: its number, from 0.
            asked: tells whether this process was asked to stop, by the time that the gradients are there.

        Raises:
            InputError: another process of the job is gone.
        """
        if self.stage.changes_at(step):
            self.guard.forget()
        values: dict[str, Tensor] = {}
        norms, first, stop = [], math.nan, False
        for turn in self.stage.turns_at(step):
            with _together():
                loss, norm, seen = self._gradients(turn, step)
                number, size, stop = self._agree(loss, norm, stop or asked())
                seen = _averaged(seen)
            main = turn == self.stage.turns[0]
            first = number if main else first
            if complaint := self.guard.complaint(number, size, main):
                return Step({}, complaint, stop)
            for optimiser in self.turns[turn]:
                optimiser.step()
            values |= {"loss" if main else f"loss_{turn}": torch.tensor(number), **seen}
            norms.append(size)
        values["gradient_norm"] = torch.tensor(max(norms))
        self.guard.good(first)
        self.stage.settle(values)
        self.ema.update(self.stage.module, step)
        return Step(values, "", stop)

    def _gradients(self, turn: str, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """This process's loss, the norm of all gradients before they were clipped, and what it observed.

        One part of the module is trained against its own loss, the others are held fast.
        """
        config, trained = self.stage.optimiser_of(turn), self.stage.module.get_submodule(turn)
        began = self.stage.begins(turn)
        rate = learning_rate(config, step - began, self.config.steps - began)
        for optimiser in self.turns[turn]:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        losses, seen, mine = [], [], parts(self.config)
        with alone(trained, self.stage.module):
            for number, part in enumerate(mine):
                others = self.parallel.unsynchronised(turn) if number + 1 < len(mine) else nullcontext()
                with others:
                    with autocast(self.device, self.config.precision):
                        loss = self.parallel.loss(turn)(step, part)
                    loss.backward()
                losses.append(loss.detach() / ranks.world())
                seen.append(self.stage.observed)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), config.clip or math.inf)
        means = {name: torch.stack([each[name] for each in seen]).nanmean(0) for name in seen[0]}
        return torch.stack(losses).sum(), complete(norm.detach()), means

    def _agree(self, loss: Tensor, norm: Tensor, stop: bool) -> tuple[float, float, bool]:
        """The loss of the whole batch, the norm, and whether any process was asked to stop; the same in all of them."""
        # The device is asked once a step, before anything moves: what would do harm is then known.
        number, size = torch.stack([loss.float(), norm.float()]).tolist()
        if not ranks.started():
            return number, size, stop
        sums = torch.tensor([number, float(stop)], dtype=torch.float64)
        dist.all_reduce(sums)
        return float(sums[0]), size, bool(sums[1])

    def state(self) -> dict[str, Any]:
        """What going on needs, beside the number of steps."""
        return {
            "module": self.stage.module.state_dict(),
            "ema": self.ema.state(),
            "optimiser": get_optimizer_state_dict(self.stage.module, self._optimisers),
            "guard": self.guard.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.stage.module.load_state_dict(state["module"])
        self.ema.load(state["ema"])
        set_optimizer_state_dict(self.stage.module, self._optimisers, optim_state_dict=state["optimiser"])
        self.guard.load(state["guard"])
        self.stage.detour(self.guard.detours)


def _averaged(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes of what each observed; NaN says that one observed nothing."""
    if not ranks.started() or not seen:
        return seen
    column = torch.stack([value.double().cpu() for value in seen.values()])
    both = torch.stack([column.nan_to_num(), (~column.isnan()).double()])
    dist.all_reduce(both)
    return dict(zip(seen, (both[0] / both[1]).float(), strict=True))


@contextmanager
def _together() -> Iterator[None]:
    """What goes wrong because another process has ended is said in a line."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not ranks.started() or not (isinstance(error, dist.DistError) or "gloo" in words or "NCCL" in words):
            raise
        raise InputError(
            "another process of this job has ended, so this one ends too; under torchrun --max-restarts the job begins "
            f"again from its last checkpoint. ({words.strip().splitlines()[0].split('. ')[0][:200]})"
        ) from error
