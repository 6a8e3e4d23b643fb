"""A run in short: its own code, from the opening of the data to the last save, with a few steps of each kind.

`rehearsed_fit` stands in for `Trainer.fit`, and calls it: the real loop takes the steps, with the run's own settings,
and is stopped from within the stage when enough were seen. Then what a run does between steps is done by hand, and in
the end the last step is taken as ever, so that a finished run is there for what comes next.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, final

import torch
from torch import Tensor

from rectiflow.base import machine
from rectiflow.plan import clock
from rectiflow.plan.between import held_out_event, preview_event
from rectiflow.plan.measured import Asked, Cost, Event, Rehearsed, Window
from rectiflow.training import autoencoder_stage
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.interrupt import Interrupt
from rectiflow.training.log import RunLog
from rectiflow.training.post_hoc import save_snapshot
from rectiflow.training.stage import Stage
from rectiflow.training.stages import PictureStage
from rectiflow.training.trainer import Trainer

Fit = Callable[[Trainer, RunLog, Interrupt], bool]
_WARM, _LEAST, _MOST = 2, 4, 200  # steps
_LONG = 2.0  # seconds of a step that needs no second one to warm up
_ALL = 20_000  # steps, up to which each is asked what kind it is
_KINDS, _RARE = 8, 0.01  # kinds that are looked for, of at least such a share of the steps
_OF_A_KIND = 3  # steps of each, or 2 long ones, of which the first is not counted
RUN = "run"  # the folder of a rehearsed run


class _Enough(Exception):
    """Stops the loop before a step."""


class _Kind(NamedTuple):
    """The first step of a kind, the first that can be taken after another, and how many there are."""

    first: int
    shown: int
    often: int


@final
@dataclass
class Notebook:
    """What has been measured so far.

    Args:
        asked: what for.
        device: where the run trains.
        since: when the last measured part ended.
        stages: what was measured of each.
    """

    asked: Asked
    device: torch.device
    since: Cost
    stages: list[Rehearsed] = field(default_factory=list)

    def begun(self) -> Cost:
        """What was spent since the last measured part, on what is done just as the run does it."""
        return clock.now(self.device) - self.since

    def ended(self) -> None:
        """A measured part is over."""
        machine.forget_peak(self.device)
        self.since = clock.now(self.device)


def rehearsed_fit(notes: Notebook, fit: Fit) -> Fit:
    """What takes the place of `Trainer.fit`, which is `fit`."""

    def rehearse(trainer: Trainer, log: RunLog, interrupt: Interrupt) -> bool:
        start = notes.begun()
        done = _Rehearsal(notes, trainer, lambda: fit(trainer, log, interrupt)).run(start)
        notes.stages.append(done)
        notes.ended()
        return True

    return rehearse


@final
class _Rehearsal:
    """Of one stage.

    Args:
        notes: what is measured goes there.
        trainer: of the stage, before its first step.
        fit: trains on from the trainer's step, to the last one.
    """

    def __init__(self, notes: Notebook, trainer: Trainer, fit: Callable[[], bool]) -> None:
        self.notes, self.trainer, self.stage, self.fit = notes, trainer, trainer.stage, fit
        self.real, self.steps, self.seconds = trainer.config, trainer.config.steps, notes.asked.seconds
        self.warm = Cost()
        self._loss = trainer.stage.loss

    def run(self, start: Cost) -> Rehearsed:
        """Take the steps, then do what is done between them, then finish."""
        trainer, events = self.trainer, self.notes.asked.events
        never = {"held_out": 0, "preview": 0, "first_preview": 0, "average": 0}
        every = self.real.every.model_copy(update={**never, "save": self.steps if self.real.every.save else 0})
        trainer.config = self.real.model_copy(update={"every": every})
        windows = self._windows()
        workers, steps_peak = machine.of_children(), machine.peak(self.notes.device)
        held_out = preview = save = average = Event()
        if events:
            each = Cost.sum(w.mean * w.count for w in windows) * (1 / self.steps / self.real.batch)
            if self.real.every.held_out:
                held_out = held_out_event(self.stage, trainer.ema.module, each, self.seconds)
            if self.real.every.preview:
                preview = preview_event(trainer, self.seconds)
            if self.real.every.save:
                save = clock.event(trainer.save, self.notes.device, 2 * self.seconds)
            average = self._average()
        last = self._last_save(self._usual(windows))
        most = machine.peak(self.notes.device)
        saved = sorted((trainer.folder / "checkpoints").glob("step-*"))
        lines = len((trainer.folder / "metrics.jsonl").read_bytes().splitlines())
        logged = sum(map(clock.size_of, [trainer.folder / "metrics.jsonl", *trainer.folder.glob("events.*")]))
        return Rehearsed(
            name=trainer.folder.name if trainer.folder.name != RUN else _kind(self.stage),
            batch=self.real.batch,
            steps=self.steps,
            precision=self.real.precision,
            parameters=sum(p.numel() for p in self.stage.module.parameters()),
            averages=max(1, len(trainer.ema.by_length)),
            start=start,
            warm=self.warm,
            windows=tuple(windows),
            held_out=held_out,
            preview=preview,
            save=save,
            last_save=last,
            average=average,
            checkpoint=clock.size_of(saved[-1]) if saved else 0,
            model=clock.size_of(trainer.folder / "model"),
            log=logged // max(1, lines),
            steps_peak=steps_peak,
            peak=most,
            workers=workers,
            pages=self._pages(),
        )

    def _usual(self, windows: list[Window]) -> Cost:
        """Of a step like the last one."""
        kind = repr(self.stage.kind(self.steps - 1))
        return next((window.mean for window in windows if window.kind == kind), windows[-1].mean)

    def _windows(self) -> list[Window]:
        """Steps from the first on, then of each kind that was hardly among them; the first of a kind warms it up."""
        kinds = self._kinds()
        seen: dict[Hashable, list[Cost]] = {}
        aside = self._take(0, seen)
        often = [kind for kind, known in kinds.items() if known.often >= _RARE * self.steps]
        for kind in sorted(often, key=lambda kind: kinds[kind].first)[:_KINDS]:
            costs, shown = seen.setdefault(kind, []), kinds[kind].shown
            for _ in range(_OF_A_KIND if 0 < shown < self.steps - 1 else 0):
                if len(costs) < (2 if costs and costs[-1].wall > _LONG else _OF_A_KIND):
                    self._take(shown - 1, seen, kind)
        seen = {kind: costs for kind, costs in seen.items() if costs}
        firsts = [(kind, costs[0]) for kind, costs in seen.items() if len(costs) > 1]
        warmed = {kind: costs[1:] or costs for kind, costs in seen.items()}
        usual = clock.mean(
            [cost for costs in warmed.values() for cost in costs] or [cost for _, cost in aside] or [Cost()]
        )
        means = {kind: clock.mean(warmed[kind]) if kind in warmed else usual for kind in kinds}
        if seen:
            spent = [(cost - means.get(kind, usual)).at_least(Cost()) for kind, cost in [*aside, *firsts]]
            self.warm = Cost.sum(spent)
        return [
            Window(
                kind=repr(kind),
                start=known.first,
                count=known.often,
                taken=len(warmed.get(kind, [])),
                mean=means[kind],
                flops=self.trainer.watch.flops(known.first),
            )
            for kind, known in kinds.items()
        ]

    def _kinds(self) -> dict[Hashable, "_Kind"]:
        """The kinds of steps that the run has."""
        apart = -(-self.steps // _ALL) | 1  # odd, or what comes every second step were always met, or never
        first: dict[Hashable, int] = {}
        shown: dict[Hashable, int] = {}
        counts: dict[Hashable, int] = {}
        asked = range(0, self.steps, apart)
        for step in asked:
            kind = self.stage.kind(step)
            first.setdefault(kind, step)
            if step:
                shown.setdefault(kind, step)
            counts[kind] = counts.get(kind, 0) + 1
        return {
            kind: _Kind(step, shown.get(kind, step), round(counts[kind] * self.steps / len(asked)))
            for kind, step in first.items()
        }

    def _take(
        self, first: int, seen: dict[Hashable, list[Cost]], wanted: Hashable | None = None
    ) -> list[tuple[Hashable, Cost]]:
        """Steps from `first` on, before the last one and no further than one of the kind that is wanted, and what each
        cost, by its kind; those that warm up are given back instead, with their kinds.
        """
        stop = self.steps - 1
        stamps: list[tuple[int, Cost]] = []

        def found() -> bool:
            return wanted is not None and any(self.stage.kind(step) == wanted for step, _ in stamps[1:-1])

        def loss(step: int, part: slice = slice(None), turn: str = "") -> Tensor:
            if not stamps or stamps[-1][0] != step:
                stamps.append((step, clock.now(self.notes.device)))
                if step >= stop or self._enough(stamps) or found():
                    raise _Enough
            return self._loss(step, part, turn)

        vars(self.stage)["loss"] = loss
        self.trainer.step = first
        try:
            if first < stop:
                self.fit()
        except _Enough:
            pass
        finally:
            del vars(self.stage)["loss"]
        costs = [(self.stage.kind(step), after - before) for (step, before), (_, after) in pairwise(stamps)]
        slow = bool(costs) and costs[0][1].wall > _LONG
        aside = min(1 if first or slow or wanted is not None else _WARM, max(0, len(costs) - 1))
        for kind, cost in costs[aside:]:
            seen.setdefault(kind, []).append(cost)
        return costs[:aside]

    def _enough(self, stamps: list[tuple[int, Cost]]) -> bool:
        taken = len(stamps) - 1
        spent = stamps[-1][1].wall - stamps[min(_WARM, taken)][1].wall
        slow = taken >= _WARM + _LEAST // 2 and stamps[-1][1].wall - stamps[0][1].wall > 3 * self.seconds
        return taken >= _MOST or slow or (taken >= _WARM + _LEAST and spent >= self.seconds)

    def _average(self) -> Event:
        trainer = self.trainer
        lengths = trainer.ema.by_length
        if not lengths or not self.real.every.average:
            return Event()

        def write() -> None:
            for length, module in lengths.items():
                save_snapshot(trainer.folder, trainer.step, length, module)

        before = clock.size_of(trainer.folder)
        found = clock.event(write, self.notes.device, 2 * self.seconds)
        return found.model_copy(update={"bytes": clock.size_of(trainer.folder) - before})

    def _last_save(self, step: Cost) -> Cost:
        """Take the last step, and what the run does after it; what is not asked for, of fewer pictures."""
        self.trainer.step = self.steps - 1
        many = autoencoder_stage._STATISTICS if self.notes.asked.events else autoencoder_stage._CHUNK
        began = clock.now(self.notes.device)
        with clock.replaced(autoencoder_stage, "_STATISTICS", many):
            self.fit()
        return (clock.now(self.notes.device) - began - step).at_least(Cost())

    def _pages(self) -> int:
        """Of latents that are mapped from disk."""
        if not isinstance(self.stage, PictureStage) or self.stage.stored is self.stage.data:
            return 0
        row = 2 * torch.Size(self.stage.stored.shape).numel()
        return row * min(len(self.stage.stored.train), self.steps * self.real.batch)


def _kind(stage: Stage) -> str:
    config = stage.config
    if isinstance(config, AutoencoderRunConfig):
        return "autoencoder"
    return "flow" if config.recipe not in ("vae", "gan") else config.recipe
