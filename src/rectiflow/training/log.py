"""What a run writes down and shows as it goes."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.files import write_text
from rectiflow.training.sinks import Lines, Sink, read_records

METRICS_NAME, STATUS_NAME, NOTES_NAME = "metrics.jsonl", "status.json", "notes.jsonl"
_LINE_SECONDS = 10.0


@final
class RunLog:
    """`metrics.jsonl`, what else watches a run, and progress on the screen: a bar in a terminal, lines elsewhere.

    How the run stands and how it ended is kept in `status.json`, what was said of it in `notes.jsonl`. Of several
    processes only the first one writes and speaks.

    Args:
        folder: the run.
        start: steps already done; later lines of an earlier attempt are dropped.
        steps: steps in all.
        console: where progress is shown.
        sinks: what else gets the metrics; closed at the end. One that fails is left out from then on, and training goes
            on.

    Attributes:
        reason: why the run stops before its last step, if that is known; to be set by who stops it.
    """

    def __init__(self, folder: Path, start: int, steps: int, console: Console, sinks: Sequence[Sink] = ()) -> None:
        self.folder, self.steps, self.console = folder, steps, console
        self.reason = ""
        self.latest: dict[str, float] = {}
        self._sinks: list[Sink] = [Lines(folder / METRICS_NAME, start), *sinks] if ranks.first() else []
        self._failed: set[int] = set()
        self._printed, self._began, self._start, self._step = time.monotonic(), time.monotonic(), start, start
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal or not ranks.first(),
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=start, words="")

    def __enter__(self) -> "RunLog":
        self._note_state("training")
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        self._bar.stop()
        for sink in list(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._left_out(sink, error)
        if isinstance(problem, Exception):
            self._note_state("failed", " ".join(str(problem).split()) or type(problem).__name__)
        else:
            self._note_state("finished" if self._step >= self.steps and problem is None else "stopped", self.reason)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` after `step` steps, with the seconds since this attempt began."""
        values = {**values, "seconds": time.monotonic() - self._began}
        self.latest |= values
        self._step = step
        for sink in list(self._sinks):
            try:
                sink.write(step, values)
            except Exception as error:
                self._left_out(sink, error)

    def tell(self, words: str) -> None:
        """Say something that a person should know now, and keep it for who asks later."""
        if not ranks.first():
            return
        self.console.print(words, highlight=False, soft_wrap=True, markup=False, emoji=False)
        with suppress(OSError), (self.folder / NOTES_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self._step, "time": time.time(), "words": words}) + "\n")

    def show(self, step: int) -> None:
        """Bring the screen up to date after `step` steps."""
        self._step = step
        if not ranks.first():
            return
        words = f"loss {self.latest.get('loss', float('nan')):.4f}"
        if "held_out_loss" in self.latest:
            words += f", held-out {self.latest['held_out_loss']:.4f}"
        words += f", {self.latest.get('images_per_second', 0):.0f} images/s"
        self._bar.update(self._task, completed=step, words=words)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._printed > _LINE_SECONDS or step == self.steps):
            self._printed = now
            left = (now - self._began) / max(1, step - self._start) * (self.steps - step)
            self.console.print(f"step {step}/{self.steps}: {words}, {left:.0f} s left", highlight=False, soft_wrap=True)

    def _left_out(self, sink: Sink, error: Exception) -> None:
        """Say once that a sink failed; the run's own record is tried again, since a disk may have room again."""
        if id(sink) not in self._failed:
            self._failed.add(id(sink))
            name, own = type(sink).__name__, isinstance(sink, Lines)
            after = "the lines are held back until the disk takes them" if own else "it is left out from now on"
            self.tell(f"{name if not own else METRICS_NAME} takes no metrics ({error}): {after}; training goes on.")
        if not isinstance(sink, Lines):
            self._sinks = [other for other in self._sinks if other is not sink]

    def _note_state(self, state: str, reason: str = "") -> None:
        if ranks.first():
            about = {"state": state, "step": self._step, "steps": self.steps, "reason": reason, "time": time.time()}
            with suppress(InputError):  # a disk that takes nothing has been told of elsewhere
                write_text(self.folder / STATUS_NAME, json.dumps(about, ensure_ascii=False) + "\n")


def last_metrics(path: Path) -> dict[str, float]:
    """The newest value of each metric in `metrics.jsonl`, and its newest step."""
    values: dict[str, float] = {}
    for record in read_records(path):
        values |= record
    return values
