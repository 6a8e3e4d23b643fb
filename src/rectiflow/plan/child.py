"""A rehearsal in a process of its own, so that its memory is a run's and nothing is left of it: `python -m` this.

What is heavy is imported when the process already knows how to end with the one that started it.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from rectiflow.base.errors import InputError
from rectiflow.plan.measured import Asked, Cost, Rehearsal
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig


def parsed(values: dict[str, object]) -> TrainingConfig:
    """A run's settings out of plain values."""
    kind = AutoencoderRunConfig if values.get("objective") == "autoencoder" else RunConfig
    return kind.parse(values, "plan")


def rehearse(asked: Asked) -> Rehearsal:
    """Rehearse a run in this process, which does nothing else.

    Raises:
        InputError: what the run would refuse.
    """
    from rectiflow import workflow
    from rectiflow.base.terminal import plain_console
    from rectiflow.plan.rehearse import RUN, Notebook
    from rectiflow.plan.whole import Rest, rehearsed
    from rectiflow.training.precision import resolve_device

    config, folder = parsed(dict(asked.config)), Path(asked.folder) / RUN
    since = Cost(wall=time.perf_counter() - (time.time() - asked.began))
    rest = Rest(Notebook(asked, resolve_device(config.device), since))
    with open(os.devnull, "w", encoding="utf-8") as nowhere, rehearsed(rest):
        workflow.run(config, folder, plain_console(file=nowhere))
    counted = {"checkpoints", "model", "samples", "averages", workflow.LATENTS, workflow.SCORES}
    return Rehearsal(
        stages=tuple(rest.notes.stages),
        encoding=rest.encoding,
        scores=rest.scores,
        end=rest.notes.begun(),
        other=sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file() and _is_other(path, folder, counted)
        ),
    )


def _is_other(path: Path, folder: Path, counted: set[str]) -> bool:
    inside = counted.intersection(path.relative_to(folder).parts)
    return not inside and path.name != "metrics.jsonl" and not path.name.startswith("events.")


def end_with(parent: int, folder: Path) -> threading.Thread:
    """When the process at the other end of a pipe is gone, however it ended, remove `folder` and end too, with all
    that this process has started. It leads a group of its own.

    Args:
        parent: the end of the pipe to read from, which gives nothing as long as that process lives.
        folder: whose it was.
    """

    def watch() -> None:
        if os.read(parent, 1):
            return
        for _ in range(3):  # the other threads may still write
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    thread = threading.Thread(target=watch, name="end with the parent", daemon=True)
    thread.start()
    return thread


def main() -> int:
    """Read what is asked for from the first file named, and write what was found, or the error, into the second."""
    there, to = map(Path, sys.argv[1:3])
    end_with(sys.stdin.fileno(), there.parent)
    try:
        found = rehearse(Asked.model_validate_json(there.read_text(encoding="utf-8"))).model_dump()
    except InputError as error:
        found = {"error": str(error)}
    to.write_text(json.dumps({**found, "finished": time.time()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
