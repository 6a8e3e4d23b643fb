"""Independent work spread over the cores of a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_cores(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`call` of each item, in order, on as many Python threads as torch has threads, each computing with one.

    Small tensors gain more by this than by torch's own threads, which must meet after each operation.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [call(item) for item in items]
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(call, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def even_parts(start: int, stop: int, most: int, cores: int) -> list[tuple[int, int]]:
    """Bounds of equal parts of start … stop−1 of at most so many each, as many parts as keep every core busy."""
    count = cores * -(-(stop - start) // (cores * most))
    bounds = [start + (stop - start) * part // count for part in range(count + 1)]
    return [(first, last) for first, last in pairwise(bounds) if last > first]
