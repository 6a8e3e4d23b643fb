"""The batch of any step, a function of (seed, step), and the processes that decode ahead of training."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.config import DataConfig
from rectiflow.data.images import Images, to_float
from rectiflow.data.order import batch_indices, bucket_indices

_LOG = logging.getLogger("rectiflow")
_FIRST = torch.zeros(1, dtype=torch.int64)


class Batch(NamedTuple):
    """One step's samples.

    Attributes:
        pixels: float32 B×C×H×W in [−1, 1]; H and W are those of one of `Images.buckets`. Of clips B×C×T×H×W, and
            B×C×1×H×W at the steps of stills.
        labels: int64 B; −1 for a picture without a label.
        captions: B of them; empty where there is none.
        index: int64 B, the rows of the set, or of its stills.
    """

    pixels: Tensor
    labels: Tensor
    captions: tuple[str, ...]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


@final
class _Batches(Dataset["Batch | str"]):
    """Some positions of the batch of each step, as a worker computes it, or why there is none."""

    def __init__(self, images: Images, config: DataConfig, batch: int, seed: int, part: slice) -> None:
        self.images, self.config, self.batch, self.seed, self.part = images, config, batch, seed, part
        self.buckets = images.buckets()
        self.counts = [len(bucket.rows) for bucket in self.buckets]

    def __getitem__(self, step: int) -> "Batch | str":
        try:
            return self._batch(step)
        except InputError as error:  # raised again by the process that trains, without the worker's traceback
            return str(error)

    def of(self, part: slice) -> "_Batches":
        """Of other positions."""
        return _Batches(self.images, self.config, self.batch, self.seed, part)

    def seeded(self, seed: int) -> "_Batches":
        """In another order."""
        return _Batches(self.images, self.config, self.batch, seed, self.part)

    def _batch(self, step: int) -> Batch:
        still = self._is_of_stills(step)
        if still and self.images.stills is not None:
            index = batch_indices(step, self.batch, len(self.images.stills), self.seed, "order of stills")
            return self._fetched(step, index[self.part], self.images.stills, self.images.stills)
        number, rows = bucket_indices(step, self.batch, self.counts, self.seed, self.images.order)
        bucket = self.buckets[number]
        batch = self._fetched(step, bucket.rows[rows[self.part]], self.images, bucket.images)
        # A causal autoencoder makes the first frame of latents of the first frame of pixels alone.
        return batch._replace(pixels=batch.pixels[:, :, :1].clone()) if still else batch

    def kind(self, step: int) -> int:
        """See `Loader.kind`."""
        if self._is_of_stills(step):
            return -1
        return bucket_indices(step, self.batch, self.counts, self.seed)[0] if len(self.counts) > 1 else 0

    def _is_of_stills(self, step: int) -> bool:
        is_clip = len(self.images.shape) == 4 and self.images.shape[1] > 1
        return is_clip and float(Key(self.seed, "training still", step).uniform(_FIRST)) < self.config.stills

    def _fetched(self, step: int, index: Tensor, images: Images, at: Images) -> Batch:
        """The rows `index` of `images`, fetched `at` one shape."""
        # Crops and mirrors are keyed by the step and the place in the batch, like every other draw.
        draws = Key(self.seed, "training crop", step).uniform(self._positions, (4,))
        wanders = self.config.crop == "random" or images.prepared
        pixels = at.fetch(index, draws[:, [0, 1, 3]] if wanders else None)
        if self.config.flip and not images.prepared:
            mirrored = (draws[:, 2] < 0.5).reshape(-1, *(1,) * (pixels.dim() - 1))
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return Batch(pixels, images.labels[index], self._captions(step, index, images), index)

    def _captions(self, step: int, index: Tensor, images: Images) -> tuple[str, ...]:
        if not images.captioned:
            return ("",) * len(index)
        choice = Key(self.seed, "training caption", step).uniform(self._positions)
        return tuple(images.captions(index, choice))

    @property
    def _positions(self) -> Tensor:
        return torch.arange(self.batch)[self.part]


@final
class _From(Sampler[int]):
    """Steps from one on."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


@final
class Loader:
    """Gives the batch of any step, or a part of it; other processes decode ahead what is asked for step by step.

    Args:
        images: what to train on.
        config: crops, mirrors, number of workers.
        batch: B.
        steps: steps in all.
        seed: seed of the run.
        share: the positions in the batch that are decoded ahead: those that this process trains on.

    Attributes:
        waited: seconds spent waiting for data so far.
    """

    def __init__(
        self, images: Images, config: DataConfig, batch: int, steps: int, seed: int, share: slice = slice(None)
    ) -> None:
        self._share, self._steps = slice(*share.indices(batch)[:2]), steps
        self._batches = _Batches(images, config, batch, seed, self._share)
        asked = max(1, (os.cpu_count() or 1) // 2) if config.workers is None else config.workers
        self._workers = asked if images.costly or (images.stills is not None and images.stills.costly) else 0
        self._tell_small_buckets(batch)
        self._next = -1
        self._iterator: Iterator[Batch | str] = iter(())
        self._last: tuple[int, Batch] | None = None
        self.waited = 0.0

    def __call__(self, step: int, part: slice = slice(None)) -> Batch:
        """The batch of `step`, the same whatever was asked for before; of it the positions `part`."""
        began = time.perf_counter()
        start, stop, _ = part.indices(self._batches.batch)
        if self._share.start <= start and stop <= self._share.stop:
            mine = self._mine(step)
            inside = slice(start - self._share.start, stop - self._share.start)
            batch = Batch(mine.pixels[inside], mine.labels[inside], mine.captions[inside], mine.index[inside])
        else:
            batch = self._checked(self._batches.of(part)[step])
        self.waited += time.perf_counter() - began
        return batch

    def kind(self, step: int) -> int:
        """Which of a few shapes the batch of `step` has: the number of its bucket, −1 for stills."""
        return self._batches.kind(step)

    def reseed(self, seed: int) -> None:
        """Give other batches from now on, as a run of another seed would have."""
        self._batches = self._batches.seeded(seed)
        self._next, self._last, self._iterator = -1, None, iter(())

    def _mine(self, step: int) -> Batch:
        """What this process trains on."""
        if self._last is None or self._last[0] != step:
            batch = self._ahead(step) if self._workers and step < self._steps else self._batches[step]
            self._last = step, self._checked(batch)
        return self._last[1]

    def _checked(self, batch: "Batch | str") -> Batch:
        if isinstance(batch, str):
            raise InputError(batch)
        return batch._replace(pixels=to_float(batch.pixels))

    def _tell_small_buckets(self, batch: int) -> None:
        for bucket, count in zip(self._batches.buckets, self._batches.counts, strict=True):
            if count < batch and len(self._batches.counts) > 1:
                _LOG.warning(
                    "the bucket %d×%d has %d pictures, fewer than a batch of %d: its batches repeat them; "
                    "data.smallest_bucket=%d merges it with the nearest.",
                    *bucket.images.shape[1:],
                    *(count, batch, batch),
                )

    def _ahead(self, step: int) -> "Batch | str":
        if step != self._next:
            self._iterator = iter(
                DataLoader(
                    self._batches,
                    batch_size=None,
                    sampler=_From(step, self._steps),
                    collate_fn=_as_it_is,
                    num_workers=self._workers,
                    prefetch_factor=4,
                    worker_init_fn=_begin,
                )
            )
        self._next = step + 1
        return next(self._iterator)


def _as_it_is(batch: Any) -> Any:
    # By default the loader makes a list of a tuple of strings.
    return batch


def _begin(worker: int) -> None:
    # Ctrl-C, and SIGTERM sent to all processes of a job, are the training process's to answer: it has yet to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # What the training process has left to collect may own threads that are not here: freeing it would wait for them.
    gc.freeze()


def _end_with(parent: int) -> None:
    """End this worker at a SIGTERM of the training process itself, which waits for its workers when it ends."""
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)
