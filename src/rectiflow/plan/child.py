"""A rehearsal in a process of its own, so that its memory is a run's and nothing is left of it: `python -m` this."""

import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from rectiflow import workflow
from rectiflow.base.errors import InputError
from rectiflow.plan.measured import Asked, Cost, Rehearsal
from rectiflow.plan.rehearse import RUN, Notebook
from rectiflow.plan.whole import Rest, rehearsed
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.precision import resolve_device

_COUNTED = {"checkpoints", "model", "samples", "averages", workflow.LATENTS, workflow.SCORES}


def parsed(values: dict[str, object]) -> TrainingConfig:
    """A run's settings out of plain values."""
    kind = AutoencoderRunConfig if values.get("objective") == "autoencoder" else RunConfig
    return kind.parse(values, "plan")


def rehearse(asked: Asked) -> Rehearsal:
    """Rehearse a run in this process, which does nothing else.

    Raises:
        InputError: what the run would refuse.
    """
    config, folder = parsed(dict(asked.config)), Path(asked.folder) / RUN
    since = Cost(wall=time.perf_counter() - (time.time() - asked.began))
    rest = Rest(Notebook(asked, resolve_device(config.device), since))
    with open(os.devnull, "w", encoding="utf-8") as nowhere, rehearsed(rest):
        workflow.run(config, folder, Console(file=nowhere))
    return Rehearsal(
        stages=tuple(rest.notes.stages),
        encoding=rest.encoding,
        scores=rest.scores,
        end=rest.notes.begun(),
        other=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and _is_other(path, folder)),
    )


def _is_other(path: Path, folder: Path) -> bool:
    counted = _COUNTED.intersection(path.relative_to(folder).parts)
    return not counted and path.name != "metrics.jsonl" and not path.name.startswith("events.")


def main() -> int:
    """Read what is asked for from the first file named, and write what was found, or the error, into the second."""
    there, to = map(Path, sys.argv[1:3])
    try:
        found = rehearse(Asked.model_validate_json(there.read_text(encoding="utf-8"))).model_dump()
    except InputError as error:
        found = {"error": str(error)}
    to.write_text(json.dumps({**found, "finished": time.time()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
