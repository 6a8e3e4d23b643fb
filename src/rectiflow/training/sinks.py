"""Where metrics go: one small interface, and the places that implement it."""

import json
import os
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, final

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.files import write_text

WANDB_ID_NAME = "wandb-id"
_DIGITS = 7  # significant ones, about those of float32
_HELD_BACK = 1000  # lines, while the disk takes none


class Sink(ABC):
    """A place that metrics are written to. Subclasses are final."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take `values`, by name, after `step` steps."""

    @abstractmethod
    def close(self) -> None:
        """Write whatever is still on its way."""


@final
class Lines(Sink):
    """A file of one JSON object a line, the run's own record: `step` and the values.

    Lines that the disk does not take are held back, and written once it takes them again.

    Args:
        path: the file; what it holds is kept, up to `start`.
        start: steps already done; later lines are of an attempt that is taken back.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        kept = [record for record in read_records(path) if record["step"] <= start]
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self._held: deque[str] = deque(maxlen=_HELD_BACK)
        self._torn = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line, in 7 significant digits.

        Raises:
            OSError: the disk takes no more; the line is held back.
        """
        self._held.append(json.dumps({"step": step, **{k: float(f"{v:.{_DIGITS}g}") for k, v in values.items()}}))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # A line that was cut off ends here, and does not spoil the next one.
                file.write(("\n" if self._torn else "") + "".join(f"{line}\n" for line in self._held))
        except OSError:
            self._torn = True
            raise
        self._held.clear()
        self._torn = False

    def close(self) -> None:
        """Nothing is on its way."""


@final
class TensorBoard(Sink):
    """Events for TensorBoard.

    Args:
        folder: where to.
        start: steps already done; TensorBoard forgets later events of an attempt that is taken back.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # A third of a second, which only a run that is watched by it should wait for.
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value; the files are written by a thread of their own."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self._events.close()


@final
class WeightsAndBiases(Sink):
    """A run at Weights & Biases, gone on with when training goes on: its id is kept in the folder.

    Project, login and mode are W&B's own: `WANDB_PROJECT` ("rectiflow" if not set), `WANDB_MODE=offline`, and so on.

    Args:
        folder: the run's; W&B keeps its files in `wandb/` there.
        settings: the run's, shown beside its curves.

    Raises:
        InputError: W&B does not start.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb = _wandb()
        folder = folder.absolute()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "rectiflow",
                name="/".join(folder.parts[-2:]),
                id=_kept_id(folder / WANDB_ID_NAME),
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                settings={"console": "off"},
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"Weights & Biases did not start ({reason}); call `wandb login`, set WANDB_MODE=offline, or leave "
                "wandb out of watch."
            ) from error
        # By its own counter it would refuse the steps between a checkpoint and a crash, which are taken again.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Tell W&B that this attempt is over."""
        self._run.finish()


def check_sinks(names: Sequence[str]) -> None:
    """Nothing, if what `watch` names is installed: told before anything else is done.

    Raises:
        InputError: it is not.
    """
    if "wandb" in names:
        _wandb()


def open_sinks(names: Sequence[str], folder: Path, start: int, settings: Mapping[str, Any]) -> list[Sink]:
    """What `watch` names, for the run in `folder`.

    Args:
        names: "tensorboard", "wandb".
        folder: the run's.
        start: steps already done.
        settings: of the run, in plain values.

    Returns:
        None of them in any process of a job but the first.

    Raises:
        InputError: one of them cannot be used.
    """
    found: list[Sink] = []
    if not ranks.first():
        return found
    if "tensorboard" in names:
        found.append(TensorBoard(folder, start))
    if "wandb" in names:
        found.append(WeightsAndBiases(folder, settings))
    return found


def read_records(path: Path) -> list[dict[str, float]]:
    """Records of a file of lines; none if it cannot be read. A line cut off by a crash is no record."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append({name: value for name, value in record.items() if isinstance(value, int | float)})
    return records


def _wandb() -> Any:
    try:
        wandb = import_module("wandb")
        assert callable(wandb.init)  # a folder of that name, such as W&B leaves behind, is a module too, and empty
    except (ImportError, AttributeError) as error:
        raise InputError(
            'watch names "wandb", and the package wandb is not installed; pip install wandb, or set '
            "watch=[tensorboard]."
        ) from error
    return wandb


def _kept_id(path: Path) -> str:
    try:
        kept = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        kept = ""
    if not kept:
        kept = secrets.token_hex(4)
        write_text(path, f"{kept}\n")
    return kept
