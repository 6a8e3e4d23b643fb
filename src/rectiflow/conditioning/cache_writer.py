"""Writing the states of a set's captions, shard by shard: cut off, it goes on; `cache` says what is written."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import Features, Value
from datasets import Sequence as ListOf
from filelock import FileLock, Timeout
from pydantic import ValidationError
from torch import Tensor

from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256, unwritable, write_aside, write_text
from rectiflow.conditioning.cache import FORMAT, MANIFEST, CaptionManifest, CaptionShard, key_of
from rectiflow.conditioning.frozen import Frozen, States

_LOG = logging.getLogger("rectiflow")
_LOCK = ".lock"
_OURS = re.compile(rf"\d{{5,}}\.(arrow|json)|{re.escape(MANIFEST)}|{re.escape(_LOCK)}|\..*\.tmp")
_SHARD = 2048  # captions
_BATCH = 64
_BLOCK = 2**25  # bytes of states written at once, at least
# Beyond this many bytes, shards are known by their sizes alone: to read them all would hold up every start.
_READ_WHOLE = 2**30
_CLAUSES = {
    "encoder": "was made by another encoder ({theirs}; this run's is {mine})",
    "captions": "was made of other captions ({theirs}; this run's are {mine})",
    "length": "holds captions of {theirs} tokens at most (this run's length is {mine})",
    "precision": "was computed in {theirs} (this run's precision is {mine})",
    "dtype": "holds {theirs} (this run's cache is {mine})",
    "format": "has format {theirs} (this release's is {mine})",
}


def write_states(
    encoder: Frozen,
    captions: Callable[[], Iterable[str]],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionManifest:
    """Write the states of each distinct caption into `folder`, or what is missing or damaged there.

    Cut off, it goes on after the last whole shard. Where nothing is missing, the encoder is not asked.

    Args:
        encoder: what reads them.
        captions: all of them in an order that does not change, as often as asked; null ones are passed over.
        folder: new, empty, or begun by this function.
        progress: told of the captions done and of all.

    Raises:
        InputError: the folder holds states of something else, or other files; states that are not finite in the dtype
            they are kept in; a disk that is full or read-only; a process that writes there.
    """
    first, keys = _distinct(captions())
    made_of = _fingerprint(encoder, keys)
    there = _read(folder / MANIFEST, CaptionManifest)
    if there is not None and there.fingerprint == made_of and all(_is_whole(folder, s, False) for s in there.shards):
        return there  # which others may be reading, or nobody may write
    with _alone_in(folder):
        former = _former(folder, made_of)
        shards = []
        stream = _at(captions(), first)
        for number, start in enumerate(range(0, len(keys), _SHARD)):
            size = min(_SHARD, len(keys) - start)
            path = folder / f"{number:05d}.arrow"
            shard = former.get(path.name)
            if shard is None or shard.captions != size:
                shard = _write_shard(path, encoder, list(islice(stream, size)), made_of)
            else:
                next(islice(stream, size, size), None)
            shards.append(shard)
            progress(start + size, len(keys))
        manifest = CaptionManifest(fingerprint=made_of, shards=tuple(shards))
        if _read(folder / MANIFEST, CaptionManifest) != manifest:
            write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _distinct(captions: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of the captions that are not null: where each comes first, rising, and its key."""
    told = (key_of(caption) if caption.strip() else None for caption in captions)
    numbered = ((number, key) for number, key in enumerate(told) if key is not None)
    table = np.fromiter(numbered, dtype=[("number", np.int64), ("key", np.uint64)])
    first = np.sort(np.unique(table["key"], return_index=True)[1])
    return table["number"][first], table["key"][first]


def _at(captions: Iterable[str], numbers: np.ndarray) -> Iterator[str]:
    """The captions of rising numbers."""
    wanted = iter(numbers.tolist())
    following = next(wanted, None)
    for number, caption in enumerate(captions):
        if number == following:
            yield caption
            following = next(wanted, None)


def _fingerprint(encoder: Frozen, keys: np.ndarray) -> dict[str, str]:
    """What the states depend on, by name."""
    return {
        "encoder": encoder.sha256,
        "captions": f"{len(keys):,}, {blake2b(keys.astype('<u8').tobytes(), digest_size=8).hexdigest()}",
        "length": str(encoder.length),
        "precision": encoder.config.precision,
        "dtype": encoder.config.cache,
        "format": str(FORMAT),
    }


def _write_shard(path: Path, encoder: Frozen, captions: Sequence[str], made_of: dict[str, str]) -> CaptionShard:
    dtype: torch.dtype = getattr(torch, encoder.config.cache)
    kind = Value("int16" if dtype == torch.bfloat16 else "float16")
    columns = {"key": Value("uint64"), "caption": Value("string"), "states": ListOf(kind), "pooled": ListOf(kind)}
    schema = Features(columns).arrow_schema

    def fill(aside: Path) -> None:
        with pa.ipc.new_stream(str(aside), schema) as stream:
            for block in _blocks(encoder, captions):
                bits = [[_bits(part, dtype, encoder) for part in row] for _, row in block]
                arrays = [
                    pa.array(np.array([key_of(caption) for caption, _ in block], dtype=np.uint64)),
                    pa.array([caption for caption, _ in block], pa.string()),
                    *(pa.array([row[part] for row in bits], schema.field(2 + part).type) for part in (0, 1)),
                ]
                stream.write_batch(pa.record_batch(arrays, schema=schema))

    write_aside(path, fill)
    shard = CaptionShard(
        fingerprint=made_of,
        name=path.name,
        captions=len(captions),
        bytes=path.stat().st_size,
        sha256=sha256(path),
    )
    write_text(path.with_suffix(".json"), shard.model_dump_json(indent=1) + "\n")
    return shard


def _blocks(encoder: Frozen, captions: Sequence[str]) -> Iterator[list[tuple[str, States]]]:
    """Captions with their states, in blocks of bytes enough to be worth a chunk of their own."""
    held: list[tuple[str, States]] = []
    size = 0
    for start in range(0, len(captions), _BATCH):
        batch = captions[start : start + _BATCH]
        held += zip(batch, encoder.encode(batch), strict=True)
        size += sum(2 * states.tokens.numel() for _, states in held[-len(batch) :])
        if size >= _BLOCK:
            yield held
            held, size = [], 0
    if held:
        yield held


def _bits(values: Tensor | None, dtype: torch.dtype, encoder: Frozen) -> np.ndarray:
    if values is None:
        return np.zeros(0, dtype=np.int16 if dtype == torch.bfloat16 else np.float16)
    stored = values.to(dtype).cpu().flatten()
    if not stored.isfinite().all():
        reach = float(values.abs().max())
        raise InputError(
            f"the states of {encoder.config.name} reach {reach:.3g}, too far for {encoder.config.cache}; set its "
            "cache: bfloat16."
            if math.isfinite(reach)
            else f"{encoder.config.name} gives states that are not finite; set its precision: float32."
        )
    return (stored.view(torch.int16) if dtype == torch.bfloat16 else stored).numpy()


def _former(folder: Path, made_of: dict[str, str]) -> dict[str, CaptionShard]:
    """The whole shards of a folder by name; those that are damaged left out.

    Raises:
        InputError: they are of something else.
    """
    notes = [note for path in sorted(folder.glob("*.json")) if (note := _read(path, CaptionShard)) is not None]
    for note in notes:
        _refuse_others(folder, note.fingerprint, made_of)
    read_whole = sum(note.bytes for note in notes) <= _READ_WHOLE
    whole = {}
    for note in notes:
        if _is_whole(folder, note, read_whole):
            whole[note.name] = note
        else:
            _LOG.warning("%s is damaged; its captions are encoded again.", folder / note.name)
    return whole


def _is_whole(folder: Path, shard: CaptionShard, read_whole: bool) -> bool:
    path = folder / shard.name
    same_size = path.is_file() and path.stat().st_size == shard.bytes
    return same_size and (not read_whole or sha256(path) == shard.sha256)


def _refuse_others(folder: Path, theirs: dict[str, str], mine: dict[str, str]) -> None:
    clauses = [
        _CLAUSES.get(name, f"has {name} {{theirs}} (this run's is {{mine}})").format(
            theirs=_short(theirs.get(name, "none")), mine=_short(mine.get(name, "none"))
        )
        for name in {**mine, **theirs}
        if theirs.get(name) != mine.get(name)
    ]
    if clauses:
        raise InputError(
            f"{folder} {' and '.join(clauses)}; remove the folder, or name another with --set text.cache=DIR."
        )


def _short(value: str) -> str:
    return f"{value[:8]}…" if len(value) == 64 else value


def _read(path: Path, kind: type[Any]) -> Any:
    """What a JSON file says, or None."""
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    strange = folder.exists() and (
        not folder.is_dir() or any(not _OURS.fullmatch(path.name) for path in folder.iterdir())
    )
    if strange:
        raise InputError(f"{folder} is there already and no folder of captions; choose another text.cache.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another process is writing in {folder}; wait for it, or choose another.") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        for path in folder.glob(".*.tmp"):  # of a process that was killed as it wrote
            path.unlink()
        yield
    finally:
        lock.release()
