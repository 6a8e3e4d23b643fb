"""The loop: steps, precision, averages, checkpoints, logs. It knows nothing of diffusion."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from rectiflow.base.autocast import autocast
from rectiflow.base.errors import InputError
from rectiflow.data.pictures import save_png
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.ema import weight_average
from rectiflow.training.log import RunLog
from rectiflow.training.optimiser import fill_state, learning_rate, optimisers
from rectiflow.training.post_hoc import save_snapshot
from rectiflow.training.stage import Stage


def parts(config: TrainingConfig) -> list[slice]:
    """The `accumulate` parts of a batch, as slices of its positions; they differ by at most one sample."""
    bounds = [config.batch * part // config.accumulate for part in range(config.accumulate + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


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


@final
class Interrupt:
    """Turns the first Ctrl-C into a wish that the loop asks for; a second one stops at once, as ever."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        # Elsewhere than in the main thread Python takes no signals; Ctrl-C is then not ours to answer.
        self._former = signal.getsignal(signal.SIGINT)
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *problem: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._former)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._former)


@final
class Trainer:
    """Trains a stage, and goes on from a checkpoint as if it had never stopped.

    Args:
        stage: what is trained; every draw it makes is a function of the step.
        config: the run; its precision is resolved.
        folder: the run's folder.
        device: where the stage lies.
    """

    def __init__(self, stage: Stage, config: TrainingConfig, folder: Path, device: torch.device) -> None:
        assert config.precision != "auto"
        self.stage, self.config, self.folder, self.device = stage, config, folder, device
        self.turns = {
            turn: optimisers(stage.module.get_submodule(turn), stage.optimiser_of(turn)) for turn in stage.turns
        }
        for optimiser in self._optimisers:
            fill_state(optimiser)
        self.ema = weight_average(stage.module, config.ema)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        self.step = 0
        self._pending: list[dict[str, Tensor]] = []  # what each step not yet looked at gave: losses, norm, observations
        self._told: set[str] = set()
        self._since, self._waited = time.perf_counter(), 0.0

    def restore(self) -> int:
        """Take up the newest checkpoint, if there is one; return the steps done.

        Raises:
            InputError: it cannot be read.
        """
        saved = self.checkpoints.steps()
        if saved:
            state = self._state()
            self.checkpoints.load(saved[-1], state)
            self.stage.module.load_state_dict(state["module"])
            self.ema.load(state["ema"])
            set_optimizer_state_dict(self.stage.module, self._optimisers, optim_state_dict=state["optimiser"])
            self.step = state["step"]
        return self.step

    def fit(self, log: RunLog, interrupt: Interrupt) -> bool:
        """Train to the last step, or until interrupted; True if the last step is done.

        Raises:
            InputError: the loss or its gradient is not finite, the device's memory is full, or a checkpoint cannot be
                written: the last model and checkpoint saved stay as they are. Or the data are gone: what has been
                learned is saved.
        """
        every, steps = self.config.every, self.config.steps
        self._since, self._waited = time.perf_counter(), self.stage.waited
        while self.step < steps:
            try:
                self._pending.append(self._train(self.step))
            except InputError:  # the data are gone: what has been learned is kept
                self._look()
                self.save()
                raise
            except torch.OutOfMemoryError as error:  # a step may be half taken: nothing is saved after it
                raise InputError(
                    f"{self.device} had no memory left in step {self.step + 1}: training stopped; {self._kept}. Try "
                    f"more parts of a batch: --set accumulate={2 * self.config.accumulate} in another --run."
                ) from error
            self.step += 1
            if self._due(every.log) or interrupt.asked:
                means = self._look()
                log.write(self.step, means)
                log.show(self.step)
                for name, words in self.stage.alarms(means).items():
                    if name not in self._told:
                        self._told.add(name)
                        log.tell(words)
            if self._due(every.held_out):
                log.write(self.step, self.stage.held_out(self.ema.module))
            if self.ema.by_length and self._due(every.average):
                self._look()
                for length, module in self.ema.by_length.items():
                    save_snapshot(self.folder, self.step, length, module)
            if self._due(every.preview) or self._due_early():
                self._preview()
            if self._due(every.save) or interrupt.asked:
                self._look()
                self.save()
            if interrupt.asked:
                break
        return self.step == steps

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [optimiser for group in self.turns.values() for optimiser in group]

    def save(self) -> None:
        """Write a checkpoint and the model as they are now."""
        self.checkpoints.save(self.step, self._state())
        self.stage.save(self.ema.module, self.folder / "model", self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _due_early(self) -> bool:
        first = self.config.every.first_preview
        doublings, rest = divmod(self.step, first) if first else (0, 0)
        return doublings > 0 and rest == 0 and doublings.bit_count() == 1 and self.step < self.config.every.preview

    def _train(self, step: int) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        norms = []
        for turn in self.stage.turns_at(step):
            loss, norm, seen = self._take_turn(turn, step)
            values |= {"loss" if turn == self.stage.turns[0] else f"loss_{turn}": loss, **seen}
            norms.append(norm)
        values["gradient_norm"] = torch.stack(norms).max()
        self.stage.settle(values)
        self.ema.update(self.stage.module, step)
        return values

    def _take_turn(self, turn: str, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Train one part of the module against its own loss, the others held fast: loss, norm and what was observed."""
        config, trained = self.stage.optimiser_of(turn), self.stage.module.get_submodule(turn)
        began = self.stage.begins(turn)
        rate = learning_rate(config, step - began, self.config.steps - began)
        for optimiser in self.turns[turn]:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        losses, seen = [], []
        with alone(trained, self.stage.module):
            for part in parts(self.config):
                with autocast(self.device, self.config.precision):
                    loss = self.stage.loss(step, part, turn)
                loss.backward()
                losses.append(loss.detach())
                seen.append(self.stage.observed)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), config.clip or math.inf)
        for optimiser in self.turns[turn]:
            optimiser.step()
        means = {name: torch.stack([each[name] for each in seen]).mean(0) for name in seen[0]}
        return torch.stack(losses).sum(), norm.detach(), means

    def _look(self) -> dict[str, float]:
        """Means since the last look; the device is asked only here."""
        if not self._pending:
            return {}
        names = list(dict.fromkeys(name for values in self._pending for name in values))
        columns = {name: torch.stack([v[name] for v in self._pending if name in v]).float().cpu() for name in names}
        self._check_finite(columns)
        now = time.perf_counter()
        count = len(self._pending)
        speed = count * self.stage.samples_per_step / (now - self._since)
        waiting = (self.stage.waited - self._waited) / (now - self._since)
        self._pending, self._since, self._waited = [], now, self.stage.waited
        return {
            **{name: float(column.mean()) for name, column in columns.items()},
            "learning_rate": learning_rate(self.config.optimiser, self.step - 1, self.config.steps),
            "images_per_second": speed,
            "waiting_for_data": waiting,
        }

    def _check_finite(self, columns: dict[str, Tensor]) -> None:
        for name, column in columns.items():
            if not torch.isfinite(column).all():
                first = next(i for i, v in enumerate(self._pending) if name in v and not torch.isfinite(v[name]).all())
                values = self._pending[first]
                turns = ("loss", *(f"loss_{turn}" for turn in self.stage.turns[1:]))
                loss = sum(float(values[turn]) for turn in turns if turn in values)
                self._stop(self.step - len(self._pending) + first, loss, float(values["gradient_norm"]))

    @property
    def _kept(self) -> str:
        saved, model = self.checkpoints.steps(), self.folder / "model"
        return f"the last good model, after step {saved[-1]}, is in {model}" if saved else "none was saved"

    def _stop(self, step: int, loss: float, norm: float) -> None:
        raise InputError(
            f"loss {loss} and gradient norm {norm} at step {step + 1}: training stopped; {self._kept}. "
            f"Try a lower rate: --set optimiser.lr={self.config.optimiser.lr / 3:.2g} in another --run."
        )

    def _preview(self) -> None:
        path = self.folder / "samples" / f"{self.step:08d}.png"
        save_png(self.stage.preview(self.ema.module), path, {"step": self.step, "recipe": self.config.recipe})

    def _state(self) -> dict[str, Any]:
        return {
            "module": self.stage.module.state_dict(),
            "ema": self.ema.state(),
            "optimiser": get_optimizer_state_dict(self.stage.module, self._optimisers),
            "step": self.step,
        }
