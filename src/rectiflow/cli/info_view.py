"""How `rectiflow info` looks in a terminal."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectiflow.cli.curve import MARK, draw
from rectiflow.cli.info_stages import spoken
from rectiflow.cli.thumbnail import thumbnail

if TYPE_CHECKING:
    from rich.console import Console

    from rectiflow.training.status import Status

_PICTURE_ROWS = 48
_SHARES = ("utilisation", "waiting_for_data")  # told in per cent


def show_facts(facts: Mapping[str, Any], console: "Console") -> None:
    """A table of plain values."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    console.print(table)


def show_run(
    folder: Path,
    status: "Status",
    stages: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, float]],
    console: "Console",
) -> None:
    """State, stages, newest metrics and the curve of the losses."""
    from rich.table import Table

    console.print()
    console.print(_state(status), style="bold")
    console.print(_checkpoint(status, folder))
    for step, words in status.notes:
        console.print(f"step {step}: {words}", style="yellow")
    if stages:
        table = Table(show_header=False, box=None)
        for stage in stages:
            table.add_row(stage["stage"], stage["state"], stage["about"])
        console.print(table)
    _show_metrics(records, console)
    _show_losses(records, console)


def _state(status: "Status") -> str:
    share = f" ({100 * status.step / status.steps:.0f} %)"
    words = f"{status.state}: step {status.step} of {status.steps}{share}"
    if status.seconds_left is not None and status.state != "finished":
        more = "left" if status.state == "training" else "more"
        words += f", about {spoken(status.seconds_left)} {more} at {status.steps_per_second:.3g} steps/s"
    return f"{words}\nreason: {status.reason}" if status.reason else words


def _checkpoint(status: "Status", folder: Path) -> str:
    found = status.checkpoint
    if found is None:
        return "checkpoint: none yet"
    words = f"checkpoint: step {found.step}, written {spoken(found.seconds_ago)} ago, "
    if found.damage:
        return f"{words}damaged: {found.damage}"
    if status.state in ("stopped", "failed"):
        words += f"sound ({found.compared} compared)\ngo on: rectiflow train --resume {folder}"
        return words
    return f"{words}sound ({found.compared} compared)"


def newest(records: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, int]]:
    """The newest value of each metric and its step."""
    found: dict[str, tuple[float, int]] = {}
    for record in records:
        found |= {name: (value, int(record["step"])) for name, value in record.items() if name != "step"}
    return found


def _show_metrics(records: Sequence[Mapping[str, float]], console: "Console") -> None:
    from rich.table import Table

    metrics = newest(records)
    if not metrics:
        return
    last = max(step for _, step in metrics.values())
    shown = [
        (name, value_in_words(name, value) + (f" (step {step})" if step < last else ""))
        for name, (value, step) in metrics.items()
    ]
    half = -(-len(shown) // 2)
    table = Table(show_header=False, box=None, title=f"metrics of step {last}", title_justify="left")
    for left, right in zip(shown[:half], [*shown[half:], ("", "")], strict=False):
        table.add_row(*left, *right)
    console.print(table)


def value_in_words(name: str, value: float) -> str:
    """A metric as a person reads it."""
    if not math.isfinite(value):
        return str(value)
    if name in _SHARES:
        return f"{100 * value:.3g} %"
    if name == "seconds":
        return spoken(value)
    if name.endswith("_mb"):
        return f"{value:.0f} MB"
    return f"{value:.4g}"


def _show_losses(records: Sequence[Mapping[str, float]], console: "Console") -> None:
    from rich.text import Text

    loss, held_out = ([(r["step"], r[name]) for r in records if name in r] for name in ("loss", "held_out_loss"))
    fancy = _encodes("⣿┤", console)
    lines = draw(loss, held_out, width=min(console.width, 100), braille=fancy)
    if not lines:
        return
    legend = f"{'⣿' if fancy else '*'} loss" + (f"   {MARK} held-out loss" if held_out else "")
    console.print(legend)
    for line in lines[:-1]:
        text = Text(line, style="cyan", no_wrap=True)
        number = re.match(r"[^┤|]*[┤|]", line)
        text.stylize("default", 0, number.end() if number else 0)
        for found in re.finditer(MARK, line):
            text.stylize("bold yellow", *found.span())
        console.print(text)
    console.print(lines[-1])


def show_preview(folder: Path, console: "Console") -> None:
    """The newest preview of a run, if it has one."""
    found = sorted((folder / "samples").glob("*.png"))
    if not found:
        console.print("no preview yet")
        return
    colours = console.color_system is not None and _encodes("▀", console)
    lines = thumbnail(found[-1], console.width, _PICTURE_ROWS, colours)
    console.print(f"preview: {found[-1]}" + ("" if lines else " cannot be read"), soft_wrap=True)
    for line in lines:
        console.print(line, no_wrap=True, soft_wrap=True)


def _encodes(characters: str, console: "Console") -> bool:
    try:
        characters.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
