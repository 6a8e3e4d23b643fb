"""How a run stands, told from its folder while it may still be training; nothing there is changed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.config import TrainingConfig
from rectiflow.training.log import METRICS_NAME, NOTES_NAME, STATUS_NAME
from rectiflow.training.manifest import first_damage, read_manifest
from rectiflow.training.run_folder import LOCK_NAME, finished, read_run
from rectiflow.training.sinks import read_records

State = Literal["not begun", "training", "stopped", "finished", "failed"]
_WINDOW = 50  # lines of metrics, for the speed
_READ_WHOLE = 2_000_000_000  # bytes of a checkpoint that are compared with their hashes; of more, the sizes
_KILLED = "its process ended without a word: killed, or the machine went down"


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint of a run.

    Args:
        step: steps done.
        seconds_ago: since it was written.
        damage: what is wrong with it, in a clause; empty if nothing is.
        compared: what was compared with its manifest: "hashes", or "sizes" of a large one.
    """

    step: int
    seconds_ago: float
    damage: str
    compared: Literal["hashes", "sizes"]


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Args:
        state: "training" while a process holds the folder.
        reason: why it stopped, failed, or finished with nothing to show for it, if that is known.
        step: steps done, by its newest line of metrics or checkpoint.
        steps: in all.
        steps_per_second: of late, all that a run does beside training included; 0 if not known.
        seconds_left: to the last step at this speed; None if not known or nothing is left.
        checkpoint: the newest; None if there is none.
        notes: what a person was told of late, each with its step.
    """

    state: State
    reason: str
    step: int
    steps: int
    steps_per_second: float
    seconds_left: float | None
    checkpoint: Checkpoint | None
    notes: tuple[tuple[int, str], ...]


def status_of(folder: Path) -> Status:
    """How the run in `folder` stands.

    Raises:
        InputError: there is no run.
    """
    config = read_run(folder)
    records = read_records(folder / METRICS_NAME)
    checkpoint = _checkpoint(folder, config)
    state, reason = _state(folder, config, bool(records) or checkpoint is not None)
    step = max(int(records[-1]["step"]) if records else 0, checkpoint.step if checkpoint else 0)
    step = config.steps if state == "finished" else step
    speed = _speed(records, config.batch)
    left = (config.steps - step) / speed if speed and step < config.steps else None
    return Status(state, reason, step, config.steps, speed, left, checkpoint, _notes(folder))


def is_held(folder: Path) -> bool:
    """Whether a process trains in a run's folder."""
    path = folder / LOCK_NAME
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # another user's folder: nothing can be told
        return False
    lock.release()
    return False


def _state(folder: Path, config: TrainingConfig, begun: bool) -> tuple[State, str]:
    said = _said(folder)
    if is_held(folder):
        return "training", ""
    if finished(config, folder):
        return "finished", ""
    reason = str(said.get("reason", ""))
    if said.get("state") == "finished":  # all steps are done; what was saved of them may be gone, or nothing was
        return "finished", reason
    if said.get("state") == "failed":
        return "failed", reason
    if said.get("state") == "training":
        return "stopped", _KILLED
    return ("stopped", reason) if said or begun else ("not begun", "")


def _said(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / STATUS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _checkpoint(folder: Path, config: TrainingConfig) -> Checkpoint | None:
    saved = Checkpoints(folder / "checkpoints", config.keep)
    for _ in range(3):  # while we look, a training run may put a newer one in its place
        try:
            step = saved.steps()[-1]
            path = folder / "checkpoints" / f"step-{step:08d}"
            written = path.stat().st_mtime
        except (IndexError, InputError):
            return None
        except OSError:
            continue
        damage, whole = "", True
        try:
            files = read_manifest(path).files
            whole = sum(entry.size for entry in files.values()) <= _READ_WHOLE
            damage = first_damage(path, files.items()) if whole else _other_size(path, files)
        except InputError as error:
            damage = str(error)
        except OSError as error:
            damage = f"it cannot be read ({error.strerror})"
        if path.exists():
            return Checkpoint(step, max(0.0, time.time() - written), damage, "hashes" if whole else "sizes")
    return None


def _other_size(path: Path, files: dict[str, Any]) -> str:
    for name, entry in files.items():
        try:
            size = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != entry.size:
            return f"{name} has {size} bytes of the {entry.size} written"
    return ""


def _speed(records: list[dict[str, float]], batch: int) -> float:
    """Steps a second over the newest lines of the newest attempt."""
    attempt: list[dict[str, float]] = []
    for record in reversed(records[-_WINDOW:]):
        if "seconds" not in record or (attempt and record["seconds"] > attempt[-1]["seconds"]):
            break
        attempt.append(record)
    if len(attempt) > 1:
        steps = attempt[0]["step"] - attempt[-1]["step"]
        seconds = attempt[0]["seconds"] - attempt[-1]["seconds"]
        if steps > 0 and seconds > 0:
            return steps / seconds
    return next((r["images_per_second"] / batch for r in reversed(records) if "images_per_second" in r), 0.0)


def _notes(folder: Path) -> tuple[tuple[int, str], ...]:
    try:
        lines = (folder / NOTES_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    notes = []
    for line in lines:
        try:
            note = json.loads(line)
            notes.append((int(note["step"]), str(note["words"])))
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(notes[-3:])
