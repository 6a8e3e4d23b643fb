"""`rectiflow plan`: what a run will cost, before it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.cli.asked import asked_run
from rectiflow.recipes.registry import RECIPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from rectiflow.plan.estimate import Estimate
    from rectiflow.plan.forecast import Forecast, StageForecast
    from rectiflow.plan.outline import Outline


@dataclass(frozen=True)
class Plan:
    """Tell what a run will cost: memory, time, disk, the largest batch. Measured on this machine by a rehearsal of a
    few steps, of which nothing is kept; for GPUs that are named, estimated. What is too big for that, or is not to be
    measured, is told from the shapes of its tensors alone.

    Args:
        recipe: Name of the recipe, such as digits.
        data: Folder of pictures to train on, for recipes that take one.
        autoencoder: Autoencoder in whose latents to train; see `rectiflow train`.
        source: Folder of other pictures to start from instead of noise.
        config: YAML file of settings laid over the recipe.
        set: Settings laid over both, as for `rectiflow train`.
        gpu: GPUs to estimate the run for, such as h100 a100 4090.
        gpus: How many of each share a batch.
        utilisation: Share of a GPU's stated rate that training is taken to reach.
        probe: Rehearse the run here; without it nothing is measured, and all is estimated from shapes, in seconds.
        seconds: That steps of one kind, or something between them, may take to be measured, about.
        json: Print JSON instead of tables.
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    data: Path | None = None
    autoencoder: str = ""
    source: Path | None = None
    config: Path | None = None
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    gpu: tuple[str, ...] = ()
    gpus: int = 1
    utilisation: float = 0.4
    probe: bool = True
    seconds: float = 4.0
    json: bool = False

    def __call__(self) -> int:
        """Plan; returns the exit status."""
        if not self.recipe:
            raise InputError(f"expected a recipe: {', '.join(RECIPES)}.")
        if not 0 < self.seconds <= 600:
            raise InputError(f"--seconds must be above 0 and up to 600, received {self.seconds:g}.")
        asked = asked_run(self.recipe, self.data, self.autoencoder, self.source, self.config, self.set)

        from rectiflow.base.terminal import plain_console
        from rectiflow.plan.plan import plan

        console = plain_console(stderr=self.json)
        with console.status("rehearsing the run" if self.probe else "counting"):
            found = plan(asked, self.gpu, self.gpus, self.utilisation, self.seconds, measure=self.probe)
        if self.json:
            print(found.model_dump_json(indent=2, exclude={"measured"}))
            return 0
        if found.why:
            console.print(f"note: {found.why} Nothing was measured.", soft_wrap=True)
        if found.here is not None:
            _show_here(found.here, console)
        if found.outline is not None:
            _show_outline(found.outline, console)
        for each in found.there:
            _show_there(each, console)
        return 0


def _show_here(told: "Forecast", console: "Console") -> None:
    from rich.table import Table

    table = Table(title=f"{told.recipe}, measured on this machine", box=None, title_justify="left")
    for number, name in enumerate(("stage", "steps", "step", "time", "memory", "disk")):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for stage in told.stages:
        steps = "" if stage.steps is None else f"{stage.steps:,}"
        step = "" if stage.step is None else span(stage.step.wall)
        table.add_row(
            stage.name, steps, step, span(stage.total.wall), size(stage.memory + stage.workers), size(stage.disk)
        )
    table.add_row("in all", "", "", span(told.total.wall), size(told.memory), size(told.disk))
    console.print(table)
    for stage in told.stages:
        for words in _words(stage):
            console.print(words, soft_wrap=True)
    room = f"{size(told.available)} of memory are available, {size(told.free)} are free on the disk."
    if told.memory > told.available:
        room += " The run does not fit into the memory: fewer samples (batch) or more parts (accumulate) do."
    if told.disk > told.free:
        room += " The run does not fit on the disk: keep=1 keeps one checkpoint."
    console.print(room, soft_wrap=True)


def _show_outline(told: "Outline", console: "Console") -> None:
    from rich.table import Table

    title = f"{told.recipe}, from shapes: an estimate, nothing was measured"
    console.print(title, style="italic", soft_wrap=True)
    table = Table(box=None)
    columns = ("stage", "params", "GFLOP/step", "states", "a sample", "disk")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for stage in told.stages:
        trained = stage.parameters is not None
        table.add_row(
            stage.name,
            f"{(stage.parameters or 0) / 1e6:,.2f} M" if trained else "",
            f"{stage.flops / 1e9:,.1f}" if trained else "",
            size(stage.states + stage.frozen),
            size(stage.per_sample) if trained else "",
            size(stage.disk),
        )
    console.print(table)
    for stage in told.stages:
        if stage.batch is not None:
            memory = stage.states + stage.frozen + stage.part(stage.batch / stage.accumulate)
            words = f"{stage.name}: {size(memory)} of memory for a batch of {stage.batch} in {stage.precision}"
            console.print(words, soft_wrap=True)
    for note in told.assumed:
        console.print(f"note: {note}", soft_wrap=True)
    room = f"{size(told.available)} of memory are available here, {size(told.free)} are free on the disk."
    console.print(room, soft_wrap=True)


def _words(stage: "StageForecast") -> "Iterator[str]":
    """What a row of the table has no room for."""
    if stage.parameters is not None:
        flops = "" if stage.flops is None else f"{stage.flops / 1e9:,.1f} GFLOP a step, "
        fit = "" if stage.largest_batch is None else f", of which {stage.largest_batch:,} would fit into the memory"
        yield (
            f"{stage.name}: {stage.parameters / 1e6:.2f} M parameters, {flops}{stage.precision}, a batch of "
            f"{stage.batch}{fit}"
        )
    yield f"{stage.name}: " + ", ".join(f"{name} {span(cost.wall)}" for name, cost in stage.parts.items() if cost.wall)
    if stage.measured_batch is not None:
        yield f"note: {stage.name} was rehearsed with a batch of {stage.measured_batch} and scaled to {stage.batch}."
    if stage.share < 1:
        yield f"note: {stage.share:.1%} of {stage.name} was done, the rest scaled."


def _show_there(told: "Estimate", console: "Console") -> None:
    from rich.table import Table

    many = f"{told.count} × " if told.count > 1 else ""
    title = f"estimate for {many}{told.full_name}, {'nothing was' if told.from_shapes else 'not'} measured"
    table = Table(title=title, box=None, title_justify="left")
    for number, name in enumerate(("stage", "step", "samples/s", "time", "memory each", "largest batch")):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for stage in told.stages:
        rate = "" if stage.samples_per_second is None else f"{stage.samples_per_second:,.0f}"
        step = "" if stage.step is None else span(stage.step)
        most = "" if stage.largest_batch is None else f"{stage.largest_batch:,}"
        table.add_row(stage.name, step, rate, span(stage.seconds), size(stage.memory), most)
    table.add_row("in all", "", "", span(told.seconds), "" if told.fits else "too much", "")
    console.print(table)
    sharded = ", weights cut up among them" if told.sharded else ""
    console.print(
        f"from {told.peak / 1e12:.4g} TFLOP/s of dense {told.precision} ({told.source}) at an assumed "
        f"{told.utilisation:.0%}{sharded}; small networks stay far below that.",
        soft_wrap=True,
    )


def span(seconds: float) -> str:
    """Seconds in words, with two or three digits that count."""
    for limit, unit, digits in ((0.0995, 1e-3, 0), (99.5, 1.0, 1), (90 * 60, 60.0, 1), (48 * 3600, 3600.0, 1)):
        if seconds < limit:
            name = {1e-3: "ms", 1.0: "s", 60.0: "min", 3600.0: "h"}[unit]
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes in words."""
    for limit, unit, name in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count < limit:
            return f"{count / unit:.{0 if count >= 10 * unit else 1}f} {name}"
    return f"{count / 1e12:.1f} TB"
