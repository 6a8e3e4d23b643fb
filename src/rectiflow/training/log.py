"""What a run writes down and shows as it goes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from rectiflow.base.files import write_text

_LINE_SECONDS = 10.0


@final
class RunLog:
    """`metrics.jsonl`, TensorBoard events, and progress on the screen: a bar in a terminal, lines elsewhere.

    Args:
        folder: the run.
        start: steps already done; later lines of an earlier attempt are dropped.
        steps: steps in all.
        console: where progress is shown.
    """

    def __init__(self, folder: Path, start: int, steps: int, console: Console) -> None:
        self.path, self.steps, self.console = folder / "metrics.jsonl", steps, console
        kept = [record for record in _records(self.path) if record["step"] <= start]
        write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self.events = SummaryWriter(str(folder), purge_step=start)
        self.latest: dict[str, float] = {}
        self._printed, self._began, self._start = time.monotonic(), time.monotonic(), start
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=start, words="")

    def __enter__(self) -> "RunLog":
        self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._bar.stop()
        self.events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` after `step` steps, with the seconds since this attempt began."""
        values = {**values, "seconds": time.monotonic() - self._began}
        self.latest |= values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def tell(self, words: str) -> None:
        """Say something that a person should know now."""
        self.console.print(words, highlight=False, soft_wrap=True)

    def show(self, step: int) -> None:
        """Bring the screen up to date after `step` steps."""
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


def _records(path: Path) -> list[dict[str, float]]:
    """Records of `metrics.jsonl`; a line cut off by a crash is no record."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def last_metrics(path: Path) -> dict[str, float]:
    """The newest value of each metric in `metrics.jsonl`, and its newest step."""
    values: dict[str, float] = {}
    for record in _records(path):
        values |= record
    return values
