"""A command under `torchrun`: its processes share the work, and one of them writes and speaks."""

from collections.abc import Iterator
from contextlib import contextmanager

from rectiflow.base.job import alone
from rectiflow.base.memory_full import told_if_full


@contextmanager
def together() -> Iterator[bool]:
    """With the other processes of the job, if there are any, until all are done; gives whether this is the first.

    Raises:
        InputError: what went wrong here; where it went wrong elsewhere first, this process exits without a word.
    """
    if alone():
        yield True
        return
    from rectiflow.base.ranks import barrier, first, joined

    with joined(), told_if_full():
        yield first()
        barrier()
