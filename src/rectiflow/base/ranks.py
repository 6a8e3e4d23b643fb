"""The processes of one job, as `torchrun` starts them: which one this is, and what they tell each other.

A process by itself is rank 0 of 1, and everything here is then free of charge. What is exchanged here is small and goes
by the CPU; gradients and weights are torch's own business (`rectiflow.training.parallel`).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rectiflow.base.errors import InputError
from rectiflow.base.job import alone, local_rank
from rectiflow.base.memory_full import MemoryFull, is_full

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)  # one rank may encode or survey for long while the others wait
_PATIENCE, _LONGEST = 1.0, 30.0  # seconds


def started() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among those of its job, from 0."""
    return dist.get_rank() if started() else 0


def world() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if started() else 1


def first() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """With the other processes of the job, if `torchrun` started any; parted from them at the end.

    Where one fails, all leave, and one says why: the first to fail. The others exit without a word.

    Raises:
        InputError: the others cannot be met, or another one is gone.
    """
    if started() or alone():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        there, number, count = next(rendezvous("env://", timeout=_TIMEOUT))
        # torchrun keeps one store through its restarts: what an attempt that failed wrote there must not be read again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt {attempt} of {count}", there)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        refused = InputError(
            f"the processes of this job cannot meet ({_line(error)}); start them by torchrun, all at one rendezvous."
        )
        refused.speaks_for_all = True
        raise refused from error
    try:
        with _one_voice(store):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _one_voice(store: Store) -> Iterator[None]:
    """Let the first process that fails say so, and the others exit; what they have in common is the store."""
    try:
        yield
    except KeyboardInterrupt:
        _is_first_to_fail(store)
        raise
    except (InputError, OSError) as error:
        if (getattr(error, "said_elsewhere", False) and _is_said(store)) or not _is_first_to_fail(store):
            raise _silent() from error
        if isinstance(error, InputError):
            error.speaks_for_all = True
        raise
    except RuntimeError as error:
        words = str(error)
        if not (isinstance(error, dist.DistError) or "gloo" in words or "NCCL" in words):
            _is_first_to_fail(store)
            raise  # a fault of ours
        if not _is_first_to_fail(store):
            raise _silent() from error
        gone = InputError(f"another process of this job is gone, so this one ends too ({_line(error)}).")
        gone.speaks_for_all = True
        raise gone from error


def _is_first_to_fail(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store went with its process: better said twice than not at all
        return True


def _is_said(store: Store) -> bool:
    """Whether the process that knows more is about to speak; it may have to put things right first."""
    deadline = time.monotonic() + _LONGEST
    try:
        while store.add("failed", 0) == 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    except RuntimeError:  # without torchrun the store is that process's own, which leaves as soon as it has spoken
        return True
    return True


def _silent() -> SystemExit:
    time.sleep(_PATIENCE)  # torchrun ends all as soon as one has left, also the one that speaks
    return SystemExit(2)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def barrier() -> None:
    """Wait until every process is here."""
    if started():
        gather(None)


def gather(value: T) -> list[T]:
    """What every process says, by rank; the same list in each of them. Values are pickled."""
    if not started():
        return [value]
    said: list[T | None] = [None] * world()
    dist.all_gather_object(said, value)
    return cast(list[T], said)


def from_first(value: T) -> T:
    """What the first process says, whatever the others do."""
    return gather(value if first() else None)[0] if started() else value  # type: ignore[return-value]


def share(count: int, of: int | None = None) -> slice:
    """The part of `count` things in a row that a process has, this one if none is named; they differ by at most one."""
    number = rank() if of is None else of
    return slice(count * number // world(), count * (number + 1) // world())


@contextmanager
def first_then_others() -> Iterator[bool]:
    """The body in the first process, and then in all others at once; gives whether this is the first.

    Where the first one fails, so do all others.

    Raises:
        InputError: what the first process raised, or that it failed.
    """
    if not started():
        yield True
        return
    if first():
        problem = "the first process failed"
        try:
            yield True
            problem = ""
        except (InputError, OSError, MemoryFull) as error:
            problem = str(error)
            raise
        except (RuntimeError, MemoryError) as error:
            problem = "no memory was left in the first process; ask for less at once." if is_full(error) else problem
            raise
        finally:
            gather(problem)
        return
    problem = gather("")[0]
    if problem:
        refused = InputError(problem)
        refused.said_elsewhere = True
        raise refused
    yield False
