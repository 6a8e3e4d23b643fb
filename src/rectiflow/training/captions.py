"""The states of a run's captions, made before it trains."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from rectiflow.conditioning.cache import Cached
from rectiflow.conditioning.cache_writer import write_states
from rectiflow.conditioning.frozen import Frozen
from rectiflow.conditioning.text import TextEncoder
from rectiflow.data.images import ImageSet


def with_states(
    encoders: Sequence[TextEncoder], data: ImageSet, folder: Path, console: Console
) -> tuple[TextEncoder, ...]:
    """The same encoders, with the states of frozen ones on disk, made there if need be.

    Args:
        encoders: of a run.
        data: whose captions they are; those of held-out pictures too.
        folder: a subfolder for each frozen encoder by its place among them.
        console: where progress is shown.

    Raises:
        InputError: the folder holds states of something else, or cannot be written; one line.
    """

    def captions() -> Iterator[str]:
        yield from data.train.every_caption()
        yield from data.held_out.every_caption()

    found: list[TextEncoder] = []
    for number, encoder in enumerate(encoders):
        if not isinstance(encoder, Frozen):
            found.append(encoder)
            continue
        place = folder / f"encoder-{number}"
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"captions by {Path(encoder.config.name).name}", total=None)

            def show(done: int, total: int, bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            manifest = write_states(encoder, captions, place, show)
        encoder.release()
        console.print(
            f"captions: the states of {sum(shard.captions for shard in manifest.shards):,} by {encoder.config.name}, "
            f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB in {place}",
            highlight=False,
            soft_wrap=True,
        )
        found.append(Cached(encoder, place, manifest))
    return tuple(found)
