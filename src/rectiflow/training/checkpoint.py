"""Checkpoints by `torch.distributed.checkpoint`: written aside, hashed, renamed; the newest and the best kept.

They are trusted files of one's own: torch pickles what is no tensor, and its `.metadata`, unlike model folders. What a
manifest vouches for is hashed before anything of it is unpickled.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.files import put_folder, unwritable, write_text
from rectiflow.training.engine import ERRORS, Exactly, causes, disk_error, first_line, reason_of, stager
from rectiflow.training.manifest import MANIFEST_NAME, Entry, Manifest, first_damage, read_manifest
from rectiflow.training.shelf import Shelf

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
        keep: how many of the newest to keep, at least 1; those that a run has only because it was stopped do not count,
            and go when the next is written.
        keep_best: how many of the best by their metric to keep besides; 0 is none.
        background: write while training goes on; the state is copied first.
    """

    def __init__(self, folder: Path, keep: int, keep_best: int = 0, background: bool = False) -> None:
        assert keep >= 1
        self.folder, self.keep, self.keep_best, self.background = folder, keep, keep_best, background
        self.shelf = Shelf(folder)
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
        return self.shelf.finished()

    def best(self) -> int | None:
        """The step of the least metric, the oldest of equal ones; None if none has a metric. See `Shelf.by_metric`."""
        return next(iter(self.shelf.by_metric()), None)

    def metric(self, step: int) -> float | None:
        """What a finished checkpoint was saved with; None if nothing, or nothing that is finite.

        Raises:
            InputError: its manifest cannot be read.
        """
        return self.shelf.manifest(step).metric

    def owed(self, step: int) -> bool:
        """Whether the run was stopped before it did what was due after this step.

        Raises:
            InputError: its manifest cannot be read.
        """
        return bool(self.shelf.manifest(step).owed)

    def save(
        self, step: int, state: dict[str, Any], metric: float | None = None, regular: bool = True, owed: bool = False
    ) -> None:
        """Write the state after `step` steps; what was saved before stays until this one is whole.

        In the background it returns as soon as the state is copied, after the save before has ended.

        Args:
            step: steps done; a checkpoint of the same step is replaced.
            state: nested mappings of tensors and of what can be pickled.
            metric: for `keep_best`; smaller is better, one that is not finite counts as none.
            regular: whether a run that is never stopped has it too.
            owed: whether something that is due after this step is still to be done.

        Raises:
            InputError: the disk is full or read-only; or, before anything of this one is written, that the former
                save failed in the background. Call `wait` first to tell the two apart.
        """
        self.wait()
        self._meet()
        if ranks.first():
            self.shelf.tidy()
        self._gather(None)  # nobody writes before what a crash left is away
        self._verified.discard(step)
        aside = self.shelf.path(step).with_name(f"{self.shelf.path(step).name}.tmp")
        manifest = partial(Manifest.now, step, metric, regular, owed)
        storage = {"storage_writer": dcp.FileSystemWriter(aside), **self._among}
        if not self.background:
            self._commit(lambda: dcp.save(state, **storage), aside, step, manifest)
            return
        self._worker = self._worker or ThreadPoolExecutor(1, "checkpoint")
        self._stager = self._stager or stager()
        written = dcp.async_save(state, async_stager=self._stager, **storage)
        self._flight = self._worker.submit(self._commit, written.result, aside, step, manifest)

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
        if ranks.first():
            self.shelf.tidy()
        passed: dict[int, str] = {}
        newest = None
        found = [step for step in self.shelf.found()[::-1] if before is None or step < before]
        for step in ranks.from_first([step for step in found if not regular or self.shelf.regular(step)]):
            problem, unreadable = self._damage(step)
            if unreadable:
                raise InputError(
                    f"{self.shelf.path(step)}: {problem}. It is left as it is: try again when the disk can be read, or "
                    "move it away to go on from the one before."
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
                tell(f"{self.shelf.path(step)} is passed over: {problem}; {self.shelf.set_aside(step)}.")
        return newest

    def distrust(self, step: int, tell: Callable[[str], None]) -> bool:
        """Put aside the checkpoints of more than `step` steps, sound as they are, of which no good step came.

        Args:
            step: that training goes on from.
            tell: is given a line for each, in the first process.

        Returns:
            whether there were any.
        """
        later = ranks.from_first([each for each in self.shelf.found() if each > step])
        for each in later if ranks.first() else ():
            tell(f"{self.shelf.path(each)} led to bad steps alone; {self.shelf.set_aside(each)}.")
        return bool(later)

    def load(self, step: int, state: dict[str, Any], part: bool = False) -> None:
        """Fill `state`, tensors in place, from the checkpoint after `step` steps.

        It is verified first, unless `newest_good` has just done so.

        Args:
            step: of a finished one.
            state: what to fill, of the same keys, shapes and types.
            part: whether the checkpoint may have more keys than are asked for.

        Raises:
            InputError: it is damaged, or of another network or optimiser; the first difference is named.
        """
        path = self.shelf.path(step)
        self._meet()
        if step not in self._verified:
            self._gather(None)  # all look before one goes on
            if problem := self._damage(step)[0]:
                raise InputError(f"{path} cannot be read; remove it to go on from the one before ({problem}).")
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), planner=Exactly(part), **self._among)
        except ERRORS as error:
            written = read_manifest(path).torch
            other = f"; torch {written} wrote it, this is {torch.__version__}" if written != torch.__version__ else ""
            for cause in causes(error):
                if isinstance(cause, InputError):
                    raise InputError(f"{path} does not fit: {cause}{other and ' (' + other[2:] + ')'}") from error
            raise InputError(
                f"{path} cannot be read; remove it to go on from the one before ({reason_of(error)}{other})."
            ) from error

    def _commit(
        self, write: Callable[[], object], aside: Path, step: int, manifest: Callable[[dict[str, Entry]], Manifest]
    ) -> None:
        """Let every process write and hash its files; then the first one finishes and makes room."""
        path, problem, files = self.shelf.path(step), "", dict[str, Entry]()
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
                    write_text(aside / MANIFEST_NAME, manifest(files).text())
                    put_folder(aside, path)
                    self.shelf.prune(step, self.keep, self.keep_best)
                except OSError as error:
                    problem = str(unwritable(path, error))
                except InputError as error:
                    problem = str(error)
            problem = self._gather(problem)[0]
            if problem:
                raise InputError(problem)
        except BaseException:
            if ranks.first():
                self.shelf.tidy()
            raise

    def _damage(self, step: int) -> tuple[str, bool]:
        """What is wrong with a checkpoint, in a clause, empty if nothing is; and whether it cannot be read just now.

        Each process reads its share.
        """
        path, unreadable = self.shelf.path(step), False
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
        words = [f"{self.shelf.path(step).name}: {problem}" for step, problem in passed.items()]
        aside = sorted(path.name for path in self.folder.glob("step-*.bad*"))
        return ranks.from_first("; ".join([*words, *(f"{name} was put aside before" for name in aside)]))

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
