"""The folder in which the checkpoints of a run lie: which there are, what they say of themselves, which of them go."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import final

from rectiflow.base.errors import InputError
from rectiflow.base.files import former_of, recover_folder
from rectiflow.training.manifest import MANIFEST_NAME, Manifest, read_manifest


@final
class Shelf:
    """Checkpoints by their steps. Of several processes the first alone changes anything.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.folder / f"step-{step:08d}"

    def found(self) -> list[int]:
        """Steps of those that there are, whole or not, oldest first.

        Raises:
            InputError: the folder is there and cannot be read.
        """
        try:
            # Not `glob`, for which a folder that cannot be read is one with nothing in it.
            with os.scandir(self.folder) as entries:
                folders = [entry.name for entry in entries if entry.name.startswith("step-") and entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.folder} cannot be read: {error.strerror}.") from error
        steps = [name.removeprefix("step-") for name in folders]
        return sorted(int(step) for step in steps if step.isdecimal())

    def finished(self) -> list[int]:
        """Steps of those that were finished, oldest first; their files are not looked into.

        Raises:
            InputError: the folder is there and cannot be read.
        """
        return [step for step in self.found() if self._is_finished(step)]

    def _is_finished(self, step: int) -> bool:
        manifest = self.path(step) / MANIFEST_NAME
        try:
            manifest.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise InputError(f"{manifest} cannot be read: {error.strerror}.") from error
        return True

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint says of itself.

        Raises:
            InputError: it has no manifest that is whole, or it cannot be read.
        """
        try:
            return read_manifest(self.path(step))
        except OSError as error:
            raise InputError(f"{self.path(step)} cannot be read ({error.strerror}).") from error

    def _told(self, step: int) -> bool:
        """Whether a checkpoint says anything of itself."""
        with suppress(InputError):
            self.manifest(step)
            return True
        return False

    def regular(self, step: int) -> bool:
        """Whether a run that is never stopped has it too; of one that is damaged this is found out where it is read."""
        with suppress(InputError):
            return self.manifest(step).regular is not False
        return True

    def by_metric(self) -> list[int]:
        """Steps of the finished ones that have a metric, the best first.

        Of equal ones the oldest comes first: until it is measured anew, a metric stands for what is saved later too.
        What a run has only because it was stopped is not among them.
        """
        metrics: dict[int, float] = {}
        for step in self.found():
            with suppress(InputError):
                told = self.manifest(step)
                if told.metric is not None and told.regular is not False and not told.owed:
                    metrics[step] = told.metric
        return sorted(metrics, key=lambda step: (metrics[step], step))

    def prune(self, written: int, keep: int, keep_best: int) -> None:
        """Remove what is neither among the newest that any run has, nor among the best, nor just written.

        What cannot be read stays, for it may be one of the best.
        """
        steps = [step for step in self.found() if self._told(step) or step == written]
        kept = {written, *[step for step in steps if self.regular(step)][-keep:], *self.by_metric()[:keep_best]}
        for step in steps:
            if step not in kept:
                gone = self.path(step).with_name(f"{self.path(step).name}.tmp")
                with suppress(OSError):
                    self.path(step).rename(gone)  # it vanishes at once, whatever then happens to its files
                    shutil.rmtree(gone, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what was never finished, and put back what was about to be replaced."""
        with suppress(OSError):  # where nothing can be changed, what lies there harms nobody
            for path in self.folder.glob(former_of(Path("step-*")).name):
                recover_folder(path.with_name(path.name[1:-4]))
            for path in self.folder.glob("step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, step: int) -> str:
        """Rename a checkpoint, so that it is not met again; say what has become of it."""
        path = self.path(step)
        for end in (".bad", *(f".bad{i}" for i in range(2, 100))):
            bad = path.with_name(path.name + end)
            if not bad.exists():
                try:
                    path.rename(bad)
                except OSError:
                    break
                return f"it is kept as {bad.name}"
        return "it is left where it is"
