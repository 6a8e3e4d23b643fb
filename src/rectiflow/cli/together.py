"""A command under `torchrun`: its processes share the work, and one of them writes and speaks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rectiflow.base.job import alone
from rectiflow.base.memory_full import told_if_full


@contextmanager
def together(asked: Any) -> Iterator[bool]:
    """With the other processes of the job, if there are any, until all are done; gives whether this is the first.

    Args:
        asked: the command, a dataclass, which has to be the same in all of them.

    Raises:
        InputError: they differ in it or in their code; what went wrong here; where it went wrong elsewhere first, this
            process exits without a word.
    """
    if alone():
        yield True
        return
    from rectiflow.base.ranks import barrier, first, joined
    from rectiflow.training.alike import check_alike

    with joined(), told_if_full():
        check_alike(json.loads(json.dumps(asdict(asked), default=str), parse_constant=str))  # NaN is not itself
        yield first()
        barrier()
