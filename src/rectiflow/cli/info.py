"""`rectiflow info`: what a run or a model folder is, and how a run stands."""

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

_SHOWN_ELSEWHERE = ("last_metrics", "checkpoint_step", "steps", "state", "stages")


@dataclass(frozen=True)
class Info:
    """Tell what a run or a model is (recipe, size, conventions), and how a run stands: state, time left, last
    checkpoint, metrics, the curve of its losses, its newest preview.

    Args:
        run: A run folder or a model folder.
        json: Print JSON instead.
        preview: Show the newest preview; if left out, in a terminal.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    json: bool = False
    preview: bool = field(default_factory=lambda: sys.stdout.isatty())

    def __call__(self) -> int:
        """Print; returns the exit status."""
        from rectiflow.training.run_folder import CONFIG_NAME

        if not (self.run / CONFIG_NAME).is_file():
            self._print(_model_facts(self.run))
            return 0
        self._run()
        return 0

    def _print(self, facts: dict[str, Any]) -> None:
        from rectiflow.base.terminal import plain_console
        from rectiflow.cli.info_view import show_facts

        if self.json:
            print(json.dumps(_finite(facts), ensure_ascii=False, indent=2))
        else:
            show_facts({name: value for name, value in facts.items() if name not in _SHOWN_ELSEWHERE}, plain_console())

    def _run(self) -> None:
        from dataclasses import asdict

        from rectiflow.base.errors import InputError
        from rectiflow.cli.info_stages import stages_of
        from rectiflow.training.run import describe_run
        from rectiflow.training.status import status_of

        status, stages, facts = status_of(self.run), stages_of(self.run), describe_run(self.run)
        if facts["model"]:
            try:
                facts |= _model_facts(self.run)
            except InputError as error:  # the rest can be told all the same
                facts["model"] = f"damaged: {error}"
        self._print(facts | {"state": asdict(status), "stages": stages})
        if self.json:
            return

        from rectiflow.base.terminal import plain_console
        from rectiflow.cli.info_view import show_preview, show_run
        from rectiflow.training.log import METRICS_NAME
        from rectiflow.training.sinks import read_records

        console = plain_console()
        show_run(self.run, status, stages, read_records(self.run / METRICS_NAME), console)
        if self.preview:
            show_preview(self.run, console)


def _model_facts(place: Path) -> dict[str, Any]:
    from rectiflow.models.autoencoder import describe_autoencoder, is_autoencoder
    from rectiflow.models.folder import describe, find_model

    folder = find_model(place)
    return describe_autoencoder(folder) if is_autoencoder(folder) else describe(folder)


def _finite(value: Any) -> Any:
    """The same, with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
