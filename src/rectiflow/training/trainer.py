"""The loop: steps, previews, checkpoints, logs. It knows nothing of diffusion."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.memory_full import is_full
from rectiflow.data.pictures import save_png
from rectiflow.training.bands import means
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.interrupt import AtOnceError, Interrupt
from rectiflow.training.less_memory import kept, smaller_parts
from rectiflow.training.log import RunLog
from rectiflow.training.optimiser import learning_rate
from rectiflow.training.post_hoc import forget_snapshots, save_snapshot
from rectiflow.training.stage import Stage
from rectiflow.training.stepper import Step, Stepper
from rectiflow.training.watch import Watch

Tell = Callable[[str], None]


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
        self.watch = Watch(stage, config, device)
        self.watch.begin()
        self.stepper = Stepper(stage, config, device)
        self.ema = self.stepper.ema
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep, config.keep_best, config.save_aside)
        self._held_out: float | None = None
        self.step = 0
        self._owed = False  # whether what is due after this step is still to be done
        self._interrupt = Interrupt()
        self._pending: list[dict[str, Tensor]] = []  # what each step not yet looked at gave: losses, norm, observations
        self._told: set[str] = set()
        self._began_at, self._since, self._waited = 0, time.perf_counter(), 0.0

    def restore(self, tell: Tell) -> int:
        """Take up the newest sound checkpoint, if there is one; return the steps done.

        Args:
            tell: is given a line for each damaged one that is passed over.

        Raises:
            InputError: it is of another network, or there are checkpoints and none can be used.
        """
        saved = self.checkpoints.newest_good(tell)
        self._take_up(saved)
        self._owed = saved is not None and self.checkpoints.owed(saved)
        return self.step

    def _take_up(self, saved: int | None) -> None:
        if saved is None:
            return
        state = self._state()
        self.checkpoints.load(saved, state)
        self.stepper.load(state)
        self.step = state["step"]
        self._held_out = self.checkpoints.metric(saved)  # it stands until the next held-out check
        if ranks.first():
            forget_snapshots(self.folder, after=self.step)

    def fit(self, log: RunLog, interrupt: Interrupt) -> bool:
        """Train to the last step, or until asked to stop; True if the last step is done.

        Raises:
            InputError: bad steps have used up what is allowed of them, the device's memory is full, or a checkpoint
                cannot be written: the last model and checkpoint saved stay as they are. Or the data are gone: what has
                been learned is saved.
        """
        self._interrupt = interrupt
        try:
            done = self._fit(log)
        except AtOnceError:  # what is being written is lost, what was written is not
            raise
        except BaseException:
            self._settle(log, "")
            raise
        self._settle(log)
        return done

    def _fit(self, log: RunLog) -> bool:
        every, steps = self.config.every, self.config.steps
        if self._owed:
            self._make_up(log)
        self._look()
        while self.step < steps:
            step = self._guarded()
            if step.complaint and self._turns_back(step.complaint, log):
                continue
            self.step += 1
            # Several processes have to be of one mind: they agree while gradients are exchanged.
            stop = step.stop or (self._interrupt.asked and not ranks.started())
            if self._due(every.log) or stop:
                self._tell_how_it_goes(log)
            self._owed = stop and self.step < steps
            if not self._owed:
                self._show(log)
            if stop or (self.step == steps and every.save):
                self._settle(log)
                self.save()
            elif self._regular:
                self._save_if_it_can(log)
            if stop:
                log.reason = "it was asked to, by Ctrl-C or SIGTERM"
                break
        return self.step == steps

    def _make_up(self, log: RunLog) -> None:
        """What was due when the run was stopped; the checkpoint is then as that of a run which never was."""
        self._owed = False
        if self._shows or self._regular:
            self._show(log)
            self._save_if_it_can(log)  # killed later, the run does not make it up a second time

    @property
    def _shows(self) -> bool:
        """Whether `_show` has anything to do after this step."""
        every = self.config.every
        averages = every.average if self.ema.by_length else 0
        return self._due_early() or any(map(self._due, (every.held_out, averages, every.preview)))

    @property
    def _regular(self) -> bool:
        """Whether a run saves here that is never stopped.

        Amid bad steps the weights may be what is wrong: they must not become the last good ones.
        """
        return self._due(self.config.every.save) and not self.stepper.guard.in_a_row

    def _guarded(self) -> Step:
        """The next step; what stops it is said, and what has been learned is kept."""
        try:
            step = self._train(self.step)
        except InputError:  # the data are gone; in other processes they may not be, and a checkpoint is written by all
            if not ranks.started():
                self.save()
            raise
        except (RuntimeError, MemoryError) as error:  # a step may be half taken: nothing is saved after it
            if not is_full(error):
                raise
            raise InputError(
                f"{self.device} had no memory left in step {self.step + 1}: training stopped; {self._kept}. "
                f"{smaller_parts(self.config, self.folder)}"
            ) from error
        if not step.complaint:
            self._pending.append(step.values)
        return step

    def _train(self, step: int) -> Step:
        return self.stepper.take(step, lambda: self._interrupt.asked)

    def _turns_back(self, complaint: str, log: RunLog) -> bool:
        """Whether the run goes back after a step that was not taken; it is told either way.

        Raises:
            InputError: it went back as often as it may.
        """
        guard, asked = self.stepper.guard, self.config.guard
        words = f"step {self.step + 1} was not taken: {complaint}"
        if not guard.bad():
            log.tell(f"{words}.")
            return False
        row = f"{asked.skips} step{'s' if asked.skips > 1 else ''} in a row"
        if not guard.turn_back():
            raise InputError(
                f"{words}; {row} were bad again after {asked.rollbacks} returns: training stopped; {self._kept}. Try a "
                f"lower rate: --set optimiser.lr={self.config.optimiser.lr / 3:.2g} in another --run."
            )
        detours, former = guard.detours, guard.returned
        # Where no good step came of the last return, what was returned to may be what is wrong.
        saved = self.checkpoints.newest_good(log.tell, regular=True, before=former)
        self._take_up(saved)
        guard.detours, guard.returned = detours, former if saved is None else saved
        if saved is not None and self.checkpoints.distrust(saved, log.tell):
            self._write_if_it_can(log, self._write_model)
        self.stage.detour(detours)
        nothing = f"on from here, for nothing {'is saved yet' if former is None else 'earlier is saved'}"
        there = f"back to step {self.step}" if saved is not None else nothing
        log.tell(f"{words}; {row} were bad: {there}, with the data in another order ({detours} of {asked.rollbacks}).")
        self._look()
        return True

    def _tell_how_it_goes(self, log: RunLog) -> None:
        seen = self._look()
        log.write(self.step, seen)
        log.show(self.step)
        for name, words in self.stage.alarms(seen).items():
            if name not in self._told:
                self._told.add(name)
                log.tell(words)

    def _show(self, log: RunLog) -> None:
        """Losses on held-out data, averages and previews, where they are due."""
        every = self.config.every
        if self._due(every.held_out):
            found = self.stage.held_out(self.ema.module)
            self._held_out = found.get("held_out_loss")
            log.write(self.step, found)
        if self.ema.by_length and self._due(every.average):
            for length, module in self.ema.by_length.items():
                whole = self.stepper.parallel.whole(module)
                if ranks.first():
                    self._write_if_it_can(log, partial(save_snapshot, self.folder, self.step, length, whole))
        if self._due(every.preview) or self._due_early():
            self._preview(log)

    def _save_if_it_can(self, log: RunLog) -> None:
        """As `_write`; a disk that is full or read-only is told, and training goes on: what was saved stays."""
        self._settle(log)
        try:
            self._write()
        except InputError as error:
            log.tell(f"step {self.step} is not saved, training goes on: {error}")

    def _settle(self, log: RunLog, then: str = ", training goes on") -> None:
        """Wait for the checkpoint that is being written; if it could not be, say so."""
        try:
            self.checkpoints.wait()
        except InputError as error:
            log.tell(f"a checkpoint was not saved{then}: {error}")

    def save(self) -> None:
        """Write a checkpoint and the model as they are now.

        Raises:
            InputError: the disk is full or read-only.
        """
        self._write()
        self.checkpoints.wait()

    def _write(self) -> None:
        """As `save`, but the checkpoint only as far as that goes before training goes on."""
        self.checkpoints.save(self.step, self._state(), self._held_out, self._regular, self._owed)
        self._write_model()

    def _write_model(self) -> None:
        whole = self.stepper.parallel.whole(self.ema.module)
        if ranks.first():
            self.stage.save(whole, self.folder / "model", self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _due_early(self) -> bool:
        first = self.config.every.first_preview
        doublings, rest = divmod(self.step, first) if first else (0, 0)
        return doublings > 0 and rest == 0 and doublings.bit_count() == 1 and self.step < self.config.every.preview

    def _look(self) -> dict[str, float]:
        """Means over the steps taken since the last look."""
        now = time.perf_counter()
        count, seconds = self.step - self._began_at, now - self._since
        pending, waited = self._pending, self.stage.waited - self._waited
        self._pending, self._began_at = [], self.step
        self._since, self._waited = now, self.stage.waited
        if count <= 0:
            return {}
        names = list(dict.fromkeys(name for values in pending for name in values))
        columns = {name: torch.stack([v[name] for v in pending if name in v]).float() for name in names}
        return {
            **means(columns),
            "learning_rate": learning_rate(self.config.optimiser, self.step - 1, self.config.steps),
            "images_per_second": count * self.stage.samples_per_step / seconds,
            "waiting_for_data": waited / seconds,
            **self.watch.at_log(self.step, count / seconds),
        }

    @property
    def _kept(self) -> str:
        with suppress(InputError):
            self.checkpoints.wait()
        return kept(self.config, self.folder)

    def _preview(self, log: RunLog) -> None:
        path = self.folder / "samples" / f"{self.step:08d}.png"
        shown = self.stage.preview(self.ema.module)
        if ranks.first():
            about = {"step": self.step, "recipe": self.config.recipe}
            self._write_if_it_can(log, partial(save_png, shown, path, about))

    def _write_if_it_can(self, log: RunLog, write: Callable[[], None]) -> None:
        """A disk that is full or read-only is told: what training does not go on from must not end it."""
        try:
            write()
        except InputError as error:
            log.tell(f"step {self.step}, training goes on: {error}")

    def _state(self) -> dict[str, Any]:
        return {**self.stepper.state(), "step": self.step}
