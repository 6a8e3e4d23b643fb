"""Writing the latents of a set, shard by shard, so that what was cut off goes on; `latents` says what is written."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import Features, Value
from datasets import Sequence as ListOf
from torch import Tensor

from rectiflow.autoencoders.posterior import Posterior
from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256, write_aside, write_text
from rectiflow.base.randomness import Key
from rectiflow.base.ranks import first_then_others, gather, rank, world
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.data.encoding import Note, Sums, alone_in, notes_of
from rectiflow.data.images import Images, ImageSet, to_float
from rectiflow.data.latents import (
    COLUMN,
    FORMAT,
    MANIFEST,
    Manifest,
    Part,
    Shard,
    damage,
    read_manifest,
    refuse_others,
)

_BLOCK = 2**22  # bytes of rows written at once, about, whatever the batch, so that it cannot be seen in the file


def encode_set(
    data: ImageSet,
    moments: Callable[[Tensor], Tensor],
    folder: Path,
    config: LatentsConfig,
    data_config: DataConfig,
    fingerprint: dict[str, str],
    progress: Callable[[int, int], None],
) -> Manifest:
    """Write the latents of `data` into `folder`, or what is missing there; nothing, if they are there.

    Version v of a training picture is a function of (seed, its row, v), a shard one of its pictures. Cut off, an
    encoding goes on after the last whole shard, with the size of shards it began with.

    Args:
        data: the pictures.
        moments: float32 B×C×H×W in [−1, 1] (clips: B×C×T×H×W) to the moments of their normalised latents, B×2C′×h×w
            (B×2C′×T′×h×w), on any device.
        folder: new, empty, or begun by this function.
        config: versions, dtype, sizes.
        data_config: crops, mirrors, noise, and how many threads decode ahead.
        fingerprint: see `latents.fingerprint`.
        progress: told of the pictures done and of all.

    Raises:
        InputError: the folder holds latents of something else, or other files; versions that would be equal; latents
            that are not finite in `config.dtype`; a disk that is full or read-only; a process that encodes there.
    """
    config.refuse_copies(data_config)
    data_config.refuse_buckets("latents")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        refuse_others(folder, manifest.fingerprint, fingerprint)
        if not any(damage(folder, shard, False) for shard in manifest.shards):
            return manifest
    with alone_in(folder):
        former = notes_of(folder, fingerprint)
        size = next((note.shard_size for note in former.values()), config.shard)
        encoder = _Encoder(moments, folder, config, data_config, fingerprint, size, data.levels)
        kinds = ("train", data.train), ("held_out", data.held_out), ("stills", data.train.stills)
        parts = {part: images for part, images in kinds if images is not None}
        notes: dict[str, list[Note]] = {part: [] for part in parts}
        done, total = 0, sum(map(len, parts.values()))
        for part, images in parts.items():
            for start in range(0, len(images), size):
                index = torch.arange(start, min(start + size, len(images)))
                done += len(index)
                if start // size % world() != rank():  # another process's
                    continue
                note = former.get(f"{part}-{start // size:05d}")
                if note is None or note.shard.pictures != len(index) or damage(folder, note.shard, read_whole=True):
                    note = encoder.write(part, images, index, _counted(progress, done - len(index), total))
                notes[part].append(note)
                progress(done, total)
        each = gather(notes)
        together = {part: sorted((n for said in each for n in said[part]), key=_place) for part in parts}
        manifest = _manifest(together, config, fingerprint)
        with first_then_others() as mine:
            if mine:
                write_text(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
        return manifest


def _place(note: Note) -> str:
    return f"{len(note.shard.name):04d}{note.shard.name}"


@dataclass(frozen=True)
class _Encoder:
    """Writes single shards; see `encode_set`."""

    moments: Callable[[Tensor], Tensor]
    folder: Path
    config: LatentsConfig
    data_config: DataConfig
    fingerprint: dict[str, str]
    shard_size: int
    levels: int

    def write(self, part: str, images: Images, index: Tensor, progress: Callable[[int], None]) -> Note:
        """Write the pictures at `index` as a shard, and the note beside it."""
        name = f"{part}-{int(index[0]) // self.shard_size:05d}"
        path = self.folder / f"{name}.arrow"
        rows = self._rows(part, images, index, progress)
        found: list[tuple[tuple[int, ...], Sums]] = []
        write_aside(path, lambda aside: found.append(_write_blocks(aside, _regrouped(rows))))
        note = Note(
            format=FORMAT,
            fingerprint=self.fingerprint,
            shard_size=self.shard_size,
            shape=found[0][0],
            shard=Shard(name=path.name, pictures=len(index), bytes=path.stat().st_size, sha256=sha256(path)),
            sums=found[0][1],
        )
        write_text(path.with_suffix(".json"), note.model_dump_json(indent=1) + "\n")
        return note

    def _rows(self, part: str, images: Images, index: Tensor, progress: Callable[[int], None]) -> Iterator[Tensor]:
        """Moments in 16 bits, the versions of a picture one after the other, for batches of pictures."""
        variants = 1 if part == "held_out" else self.config.variants
        batches = index.split(self.config.batch)
        asked = [(batch, version) for batch in batches for version in range(variants)]
        fetched = _ahead([partial(self._fetch, images, *one) for one in asked], self._threads(images))
        done = 0
        for batch in batches:
            versions = []
            for version in range(variants):
                x = self._prepared(next(fetched), part, batch, version)
                with torch.no_grad():
                    versions.append(self._stored(self.moments(x)))
            yield torch.stack(versions, dim=1).flatten(0, 1)
            done += len(batch)
            progress(done)

    def _fetch(self, images: Images, index: Tensor, version: int) -> Tensor:
        random = version > self.data_config.flip and self.data_config.crop == "random"
        return images.fetch(index, self._draws(index, version)[:, :3] if random else None)

    def _prepared(self, pixels: Tensor, part: str, index: Tensor, version: int) -> Tensor:
        """Pictures as the autoencoder sees them: float32 in about [−1, 1], mirrored or not, with noise or without."""
        x = to_float(pixels)
        if self.data_config.flip and version:
            mirrored = self._draws(index, version)[:, 3] < (1 if version == 1 else 0.5)
            x = torch.where(mirrored.reshape(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        width = self.data_config.dequantise * 2 / (self.levels - 1)
        if width:
            key = Key(self.config.seed, f"latents {part} dequantise", version)
            x = x + (key.uniform(index, x.shape[1:]).float() - 0.5) * width
        return x

    def _draws(self, index: Tensor, version: int) -> Tensor:
        return Key(self.config.seed, "latents version", version).uniform(index, (4,))

    def _stored(self, moments: Tensor) -> Tensor:
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        assert moments.shape[1] % 2 == 0
        stored = moments.to(dtype).cpu()
        if not stored.isfinite().all():
            reach = float(moments.abs().max())
            raise InputError(
                f"the latents reach {reach:.3g}, too far for {self.config.dtype}; set latent.cache.dtype=bfloat16."
                if math.isfinite(reach)
                else "the autoencoder gives latents that are not finite; train it again, or choose another."
            )
        return stored

    def _threads(self, images: Images) -> int:
        workers = self.data_config.workers
        asked = max(1, (os.cpu_count() or 1) // 2) if workers is None else workers
        return asked if images.costly else 0


def _counted(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda count: progress(before + count, total)


def _ahead(calls: Sequence[Callable[[], Tensor]], threads: int) -> Iterator[Tensor]:
    """What the calls give, in order, while threads compute those that follow; decoders let other threads run."""
    if not threads:
        yield from (call() for call in calls)
        return
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _regrouped(rows: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same rows in blocks of about `_BLOCK` bytes."""
    held = next(rows)
    size = max(1, _BLOCK // (held.element_size() * held[0].numel()))
    for more in rows:
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
        held = torch.cat([held, more])
    yield from held.split(size)


def _write_blocks(path: Path, blocks: Iterator[Tensor]) -> tuple[tuple[int, ...], Sums]:
    """An Arrow stream of the blocks; the shape of a row, and the sums of all."""
    first = next(blocks)
    bits, length = first.dtype == torch.bfloat16, first[0].numel()
    schema = Features({COLUMN: ListOf(Value("int16" if bits else "float16"), length=length)}).arrow_schema
    sums = Sums()
    with pa.ipc.new_stream(str(path), schema) as stream:
        for block in chain([first], blocks):
            flat = (block.view(torch.int16) if bits else block).flatten().numpy()
            rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), length)
            stream.write_batch(pa.record_batch([rows], schema=schema))
            sums = _added([sums, _sums(block)])
    return tuple(first.shape[1:]), sums


def _sums(block: Tensor) -> Sums:
    posterior = Posterior.of(block.double())
    # Contiguous, since strides take another code path, which may differ in the last bit.
    mean, variance = posterior.mean.contiguous(), posterior.log_variance.contiguous().exp()
    over = (0, *range(2, block.dim()))
    mean_sum, square, spread = (tuple(values.sum(over).tolist()) for values in (mean, mean.square(), variance))
    return Sums(count=mean.numel() // mean.shape[1], mean=mean_sum, square=square, variance=spread)


def _added(sums: Sequence[Sums]) -> Sums:
    some = [each for each in sums if each.count]
    mean, square, variance = (
        tuple(math.fsum(channel) for channel in zip(*(getattr(each, name) for each in some), strict=True))
        for name in ("mean", "square", "variance")
    )
    return Sums(count=sum(each.count for each in some), mean=mean, square=square, variance=variance)


def _manifest(notes: dict[str, list[Note]], config: LatentsConfig, fingerprint: dict[str, str]) -> Manifest:
    sums = _added([note.sums for note in notes["train"]])
    mean = [value / sums.count for value in sums.mean]
    spread = zip(mean, sums.square, sums.variance, strict=True)
    parts = {
        part: Part(pictures=sum(note.shard.pictures for note in some), shards=tuple(note.shard for note in some))
        for part, some in notes.items()
    }
    return Manifest(
        format=FORMAT,
        fingerprint=fingerprint,
        shape=notes["train"][0].shape,
        dtype=config.dtype,
        variants=config.variants,
        train=parts["train"],
        held_out=parts["held_out"],
        stills=parts.get("stills"),
        mean=tuple(mean),
        deviation=tuple(math.sqrt(max(s / sums.count - m * m, 0) + v / sums.count) for m, s, v in spread),
    )
