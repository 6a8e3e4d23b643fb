"""Checkpoints by `torch.distributed.checkpoint`: written aside, hashed, renamed; the newest and the best kept.

They are trusted files of one's own: torch pickles what is no tensor, and its `.metadata`, unlike model folders. What a
manifest vouches for is hashed before anything of it is unpickled.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.files import put_folder, recover_folder, unwritable, write_text
from rectiflow.training.engine import ERRORS, Exactly, causes, disk_error, first_line, reason_of, stager
from rectiflow.training.manifest import MANIFEST_NAME, Entry, Manifest, first_damage, read_manifest

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)  # one process may write or hash for long while the others wait


@final
class Checkpoints:
    """The checkpoints of a run, `step-00000500` and so on, in a folder that every process of the job sees.

    Of several processes each one calls `save`, `wait`, `newest_good` and `load`, at the same point of its work; their
    checkpoints are read by any other number of processes. What is equal in all of them is written once, and what is
    sharded (`DTensor`) by its holder: a plain value that differs between processes needs a key of its own in each.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep, at least 1.
        keep_best: how many of the best by their metric to keep besides; 0 is none.
        background: write while training goes on; the state is copied first.
        every: steps between those that a run saves in any case; others are saved when it is stopped. The newest of the
            former is kept too.
    """

    def __init__(self, folder: Path, keep: int, keep_best: int = 0, background: bool = False, every: int = 1) -> None:
        assert keep >= 1
        self.every = every or 1
        self.folder, self.keep, self.keep_best, self.background = folder, keep, keep_best, background
        self._verified: set[int] = set()
        self._flight: Future[None] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._stager: Any = None
        self._group: dist.ProcessGroup | None = None
        # One process is a case like any other here, and torch warns of it at each save.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints there are, oldest first; their files are not looked into.

        Raises:
            InputError: the folder is there and cannot be read.
        """
        return [step for step in self._found() if (self._path(step) / MANIFEST_NAME).is_file()]

    def best(self) -> int | None:
        """The step of the least metric, the newest of equal ones; None if none has a metric."""
        return next(iter(self._by_metric()), None)

    def metric(self, step: int) -> float | None:
        """What a finished checkpoint was saved with; None if nothing, or nothing that is finite.

        Raises:
            InputError: its manifest cannot be read.
        """
        try:
            return read_manifest(self._path(step)).metric
        except OSError as error:
            raise InputError(f"{self._path(step)} cannot be read ({error.strerror}).") from error

    def save(self, step: int, state: dict[str, Any], metric: float | None = None) -> None:
        """Write the state after `step` steps; what was saved before stays until this one is whole.

        In the background it returns as soon as the state is copied, after the save before has ended.

        Args:
            step: steps done; a checkpoint of the same step is replaced.
            state: nested mappings of tensors and of what can be pickled.
            metric: for `keep_best`; smaller is better, one that is not finite counts as none.

        Raises:
            InputError: the disk is full or read-only; or, before anything of this one is written, that the former
                save failed in the background. Call `wait` first to tell the two apart.
        """
        self.wait()
        self._meet()
        self._tidy()
        self._gather(None)  # nobody writes before what a crash left is away
        self._verified.discard(step)
        aside = self._path(step).with_name(f"{self._path(step).name}.tmp")
        storage = {"storage_writer": dcp.FileSystemWriter(aside), **self._among}
        if not self.background:
            self._commit(lambda: dcp.save(state, **storage), aside, step, metric)
            return
        self._worker = self._worker or ThreadPoolExecutor(1, "checkpoint")
        self._stager = self._stager or stager()
        written = dcp.async_save(state, async_stager=self._stager, **storage)
        self._flight = self._worker.submit(self._commit, written.result, aside, step, metric)

    def wait(self) -> None:
        """Until what is being written in the background is finished; call it before the process ends.

        Raises:
            InputError: it could not be written; told once. The checkpoints before are as they were.
        """
        if self._flight is None:
            return
        try:
            self._flight.result()
        finally:
            if self._flight.done():
                self._flight = None

    def newest_good(self, tell: Callable[[str], None], regular: bool = False, before: int | None = None) -> int | None:
        """The newest checkpoint whose files are all as they were written, or None if there are no checkpoints.

        Each damaged one that is newer is told of and put aside as `step-….bad`, where it stays. What a crash left
        half-written is removed.

        Args:
            tell: is given a line for each, in the first process.
            regular: only those that are there whether a run was stopped or not; None if none of them is sound.
            before: only those of fewer steps; None is any.

        Raises:
            InputError: one cannot be read now, or none of them is sound; they are left as they are.
        """
        try:
            self.wait()
        except InputError as error:
            if ranks.first():
                tell(str(error))
        self._meet()
        self._tidy()
        passed: dict[int, str] = {}
        newest = None
        found = [step for step in self._found()[::-1] if before is None or step < before]
        for step in ranks.from_first([step for step in found if not regular or self._is_regular(step)]):
            problem, unreadable = self._damage(step)
            if unreadable:
                raise InputError(
                    f"{self._path(step)}: {problem}. It is left as it is: try again when the disk can be read, or move "
                    "it away to go on from the one before."
                )
            if not problem:
                newest = step
                break
            passed[step] = problem
        if newest is None and not regular and (words := self._unusable(passed)):
            raise InputError(
                f"no checkpoint in {self.folder} can be used ({words}). They and the model are left as they are: put a "
                f"sound one back, or remove {self.folder} to begin anew."
            )
        if newest is not None:
            self._verified.add(newest)
        if ranks.first():
            for step, problem in passed.items():
                tell(f"{self._path(step)} is passed over: {problem}; {_set_aside(self._path(step))}.")
        return newest

    def distrust(self, step: int, tell: Callable[[str], None]) -> None:
        """Put aside the checkpoints of more than `step` steps, sound as they are, of which no good step came.

        Args:
            step: that training goes on from.
            tell: is given a line for each, in the first process.
        """
        for later in self._found() if ranks.first() else ():
            if later > step:
                tell(f"{self._path(later)} led to bad steps alone; {_set_aside(self._path(later))}.")

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill `state`, tensors in place, from the checkpoint after `step` steps.

        It is verified first, unless `newest_good` has just done so.

        Raises:
            InputError: it is damaged, or of another network or optimiser; the first difference is named.
        """
        path = self._path(step)
        self._meet()
        if step not in self._verified:
            self._gather(None)  # all look before one goes on
            if problem := self._damage(step)[0]:
                raise InputError(f"{path} cannot be read; remove it to go on from the one before ({problem}).")
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), planner=Exactly(), **self._among)
        except ERRORS as error:
            for cause in causes(error):
                if isinstance(cause, InputError):
                    raise InputError(f"{path} does not fit: {cause}") from error
            written = read_manifest(path).torch
            other = f"; torch {written} wrote it, this is {torch.__version__}" if written != torch.__version__ else ""
            raise InputError(
                f"{path} cannot be read; remove it to go on from the one before ({reason_of(error)}{other})."
            ) from error

    def _commit(self, write: Callable[[], object], aside: Path, step: int, metric: float | None) -> None:
        """Let every process write and hash its files; then the first one finishes and makes room."""
        path, problem, files = self._path(step), "", dict[str, Entry]()
        try:
            try:
                write()  # what fails in one process, torch raises in all
                mine = f"__{ranks.rank()}_"
                files = {file.name: Entry.of(file) for file in aside.iterdir() if file.name.startswith(mine)}
            except ERRORS as error:
                problem = str(unwritable(path, disk_error(error, self.folder)))
            said = self._gather((problem, files))
            problem = next((text for text, _ in said if text), "")
            if not problem and ranks.first():
                try:
                    files = {name: entry for _, theirs in said for name, entry in theirs.items()}
                    files |= {file.name: Entry.of(file) for file in aside.iterdir() if file.name not in files}
                    manifest = Manifest.now(step, ranks.world(), metric, files, step % self.every == 0)
                    write_text(aside / MANIFEST_NAME, manifest.text())
                    put_folder(aside, path)
                    self._prune(step)
                except OSError as error:
                    problem = str(unwritable(path, error))
                except InputError as error:
                    problem = str(error)
            problem = self._gather(problem)[0]
            if problem:
                raise InputError(problem)
        except BaseException:
            if ranks.first():
                self._tidy()
            raise

    def _prune(self, written: int) -> None:
        """Remove what is neither among the newest, nor among the best, nor just written."""
        steps = self.steps()
        regular = [step for step in steps if self._is_regular(step)]
        kept = {written, *steps[-self.keep :], *regular[-1:], *self._by_metric()[: self.keep_best]}
        for step in steps:
            if step not in kept:
                gone = self._path(step).with_name(f"{self._path(step).name}.tmp")
                with suppress(OSError):
                    self._path(step).rename(gone)  # it vanishes at once, whatever then happens to its files
                    shutil.rmtree(gone, ignore_errors=True)

    def _is_regular(self, step: int) -> bool:
        """As it was written: the steps between saves may be others now."""
        said = None
        with suppress(InputError, OSError):
            said = read_manifest(self._path(step)).regular
        return step % self.every == 0 if said is None else said

    def _by_metric(self) -> list[int]:
        metrics: dict[int, float] = {}
        for step in self.steps():
            with suppress(InputError):
                if (metric := self.metric(step)) is not None:
                    metrics[step] = metric
        return sorted(metrics, key=lambda step: (metrics[step], -step))

    def _damage(self, step: int) -> tuple[str, bool]:
        """What is wrong with a checkpoint, in a clause, empty if nothing is; and whether it cannot be read just now.

        Each process reads its share.
        """
        path, unreadable = self._path(step), False
        try:
            manifest = read_manifest(path)
            problem = "" if manifest.step == step else f"its {MANIFEST_NAME} is of step {manifest.step}"
            if not problem:
                problem = first_damage(path, list(manifest.files.items())[ranks.rank() :: ranks.world()])
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem, unreadable = f"{Path(error.filename or path).name} cannot be read ({error.strerror})", True
        # What cannot be read in one process outweighs what is damaged in another: it is left alone.
        said = sorted(self._gather((problem, unreadable)), key=lambda each: not each[1])
        return next((each for each in said if each[0]), ("", False))

    def _unusable(self, passed: Mapping[int, str]) -> str:
        """What is wrong with each of the checkpoints that there are, those put aside before too."""
        words = [f"{self._path(step).name}: {problem}" for step, problem in passed.items()]
        aside = sorted(path.name for path in self.folder.glob("step-*.bad*"))
        return ranks.from_first("; ".join([*words, *(f"{name} was put aside before" for name in aside)]))

    def _tidy(self) -> None:
        """Remove what was never finished, and put back what was about to be replaced."""
        if ranks.first():
            with suppress(OSError):  # where nothing can be changed, what lies there harms nobody
                for path in self.folder.glob("step-*.old"):
                    recover_folder(path.with_suffix(""))
                for path in self.folder.glob("step-*.tmp"):
                    shutil.rmtree(path, ignore_errors=True)

    def _found(self) -> list[int]:
        try:
            names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*") if path.is_dir()]
        except OSError as error:
            raise InputError(f"{self.folder} cannot be read: {error.strerror}.") from error
        return sorted(int(name) for name in names if name.isdecimal())

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _meet(self) -> None:
        # A group of its own, by the CPU: the thread that writes must not mix its words with those of training.
        if ranks.world() > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def _among(self) -> dict[str, Any]:
        return {"process_group": self._group, "no_dist": self._group is None}

    def _gather(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        said: list[Any] = [None] * ranks.world()
        try:
            dist.all_gather_object(said, value, group=self._group)
        except RuntimeError as error:
            raise InputError(
                f"a process of this job is gone ({first_line(error).split('. ')[0]}); start all of them again."
            ) from error
        return said


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint, so that it is not met again; say what has become of it."""
    for end in (".bad", *(f".bad{i}" for i in range(2, 100))):
        bad = path.with_name(path.name + end)
        if not bad.exists():
            try:
                path.rename(bad)
            except OSError:
                break
            return f"it is kept as {bad.name}"
    return "it is left where it is"
