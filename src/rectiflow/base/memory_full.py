"""A memory that is full: how that is known on any device, and the one line that it ends in. Never imports torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rectiflow.base.errors import InputError

# As torch says it of GPUs and, in a plain RuntimeError, of the CPU and of its libraries' own memory.
_WORDS = ("out of memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED", "Cannot allocate memory")


class MemoryFull(MemoryError):
    """Raised by what knows itself what found no room and what takes less: its words are the line that it ends in."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that no memory is left, on whatever device."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    return said or isinstance(error, MemoryError)


def _general() -> str:
    return "no memory was left; ask for less at once, or use another device."


@contextmanager
def told_if_full(words: Callable[[], str] = _general) -> Iterator[None]:
    """Say it in a line if memory runs out in the body; all other errors go on as they are.

    Args:
        words: gives the line, once it is needed: what was being done, what is kept, what to try. A `MemoryFull` has its
            own.

    Raises:
        InputError: no memory was left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        raise InputError(str(error) if isinstance(error, MemoryFull) else words()) from error
