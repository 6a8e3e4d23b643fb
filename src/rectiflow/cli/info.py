"""`rectiflow info`: what a run or a model folder is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Info:
    """Tell what a run or a model is: recipe, size, step, last losses, conventions.

    Args:
        run: A run folder or a model folder.
        json: Print JSON instead of a table.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    json: bool = False

    def __call__(self) -> int:
        """Print; returns the exit status."""
        facts = self._facts()
        if self.json:
            print(json.dumps(facts, ensure_ascii=False, indent=2))
            return 0

        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for name, value in facts.items():
            table.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        Console().print(table)
        return 0

    def _facts(self) -> dict[str, Any]:
        from rectiflow.models.autoencoder import describe_autoencoder, is_autoencoder
        from rectiflow.models.folder import describe, find_model
        from rectiflow.training.run import CONFIG_NAME, describe_run

        facts: dict[str, Any] = describe_run(self.run) if (self.run / CONFIG_NAME).is_file() else {}
        if not facts or facts["model"]:
            folder = find_model(self.run)
            facts |= describe_autoencoder(folder) if is_autoencoder(folder) else describe(folder)
        return facts
