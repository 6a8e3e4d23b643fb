"""States of a set's captions on disk, each caption once, so that training never runs a frozen encoder.

    FOLDER/captions.json         the manifest, written last
    FOLDER/00000.arrow, …        Arrow streams: key (the first 8 bytes of BLAKE2b), caption, states, pooled
    FOLDER/00000.json, …         what the shard holds: by these a writing that was cut off goes on

States are float16, or the 16 bits of a bfloat16 in an int16: L·D numbers, L the tokens of this caption. Shards are
mapped from disk; of each caption memory holds its key and the number of its row. `cache_writer` writes it.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rectiflow.base.condition import Text
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.conditioning.config import TextRecord
from rectiflow.conditioning.frozen import Frozen, States, padded
from rectiflow.conditioning.text import TextEncoder
from rectiflow.networks.config import StatesInput

FORMAT = 1
MANIFEST = "captions.json"


class CaptionShard(Config):
    """One file and what it was made of.

    Args:
        fingerprint: see `fingerprint`.
        name: of the file.
        captions: in it.
        bytes: its size.
        sha256: of its bytes, hexadecimal.
    """

    fingerprint: dict[str, str]
    name: str
    captions: int
    bytes: int
    sha256: str


class CaptionManifest(Config):
    """What a folder of states holds.

    Args:
        fingerprint: see `fingerprint`.
        shards: its files, in order.
    """

    fingerprint: dict[str, str]
    shards: tuple[CaptionShard, ...]


@final
class Cached(TextEncoder):
    """A frozen encoder whose states lie on disk; what is not there is asked of the encoder itself.

    Args:
        encoder: the encoder.
        folder: what `write_states` wrote.
        manifest: what it returned.

    Raises:
        InputError: a shard cannot be read.
    """

    gives: StatesInput

    def __init__(self, encoder: Frozen, folder: Path, manifest: CaptionManifest) -> None:
        self.encoder, self.gives = encoder, encoder.gives
        self._dtype: torch.dtype = getattr(torch, encoder.config.cache)
        self._chunks: list[dict[str, Any]] = []
        keys = [np.zeros(0, dtype=np.uint64)]
        for shard in manifest.shards:
            for batch in _batches(folder / shard.name):
                self._chunks.append({name: batch.column(name) for name in batch.schema.names})
                keys.append(batch.column("key").to_numpy())
        self._starts = np.cumsum([0, *(len(each) for each in keys[1:])])[:-1]
        together = np.concatenate(keys)
        self._rows = np.argsort(together, kind="stable").astype(np.int32)
        self._keys = together[self._rows]

    def __call__(self, captions: Sequence[str]) -> Text:
        """float32 states B×L×D, their mask, and the pooled vectors, on the CPU."""
        distinct = list(dict.fromkeys(caption for caption in captions if caption.strip()))
        found = {caption: self._find(caption) for caption in distinct}
        missing = [caption for caption, states in found.items() if states is None]
        for caption, (tokens, pooled) in zip(missing, self.encoder.encode(missing), strict=True):
            found[caption] = States(tokens.cpu(), None if pooled is None else pooled.cpu())
        return padded([found.get(caption) for caption in captions], self.gives)

    def save(self, folder: Path, number: int) -> tuple[TextRecord, dict[str, str]]:
        """As the encoder's own."""
        return self.encoder.save(folder, number)

    def _find(self, caption: str) -> States | None:
        key = key_of(caption)
        place = int(np.searchsorted(self._keys, key))
        while place < len(self._keys) and self._keys[place] == key:
            row = int(self._rows[place])
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            chunk, row = self._chunks[number], row - int(self._starts[number])
            if chunk["caption"][row].as_py() == caption:
                pooled = self._numbers(chunk["pooled"][row])
                return States(
                    self._numbers(chunk["states"][row]).reshape(-1, self.gives.features),
                    pooled if self.gives.pooled else None,
                )
            place += 1
        return None

    def _numbers(self, cell: Any) -> Tensor:
        bits = cell.values.to_numpy(zero_copy_only=True).view(np.int16).copy()
        return torch.from_numpy(bits).view(self._dtype).float()


def key_of(caption: str) -> np.uint64:
    """The number by which a caption is found."""
    digest = blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _batches(path: Path) -> list[Any]:
    try:
        return list(Dataset.from_file(str(path)).data.to_batches())
    except Exception as error:  # the reader lets through whatever its parsers raise
        raise InputError(f"{path} cannot be read ({type(error).__name__}); remove it, and it is made again.") from error
