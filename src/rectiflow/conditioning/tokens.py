"""Byte pairs learned from the captions of a run (Sennrich et al. 2016; on bytes, so that no text is unknown)."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rectiflow.base.condition import Text
from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256
from rectiflow.conditioning.config import TokensRecord
from rectiflow.conditioning.text import TextEncoder, padded_length
from rectiflow.networks.config import TokensInput

_LOG = logging.getLogger("rectiflow")


@final
class Tokens(TextEncoder):
    """Captions as ids of byte pairs, padded to a length that a network likes.

    Args:
        tokenizer: of the `tokenizers` library.
        length: tokens of a caption at most.
        gives: the encoder that a network is to read them by.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, gives: TokensInput) -> None:
        self.tokenizer, self.length, self.gives = tokenizer, length, gives
        self._told = False

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int, length: int, gives: TokensInput) -> Self:
        """Learn at most `vocabulary` tokens from captions; the same captions give the same tokens.

        Raises:
            InputError: there are no captions.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        distinct = sorted(set(captions) - {""})
        if not distinct:
            raise InputError(
                "none of the pictures has a caption; expected a column 'text' in metadata.csv or .jsonl (another name: "
                "data.caption), or a .txt file beside each picture."
            )
        tokenizer.train_from_iterator(distinct, trainer)
        return cls(tokenizer, length, gives.model_copy(update={"vocabulary": tokenizer.get_vocab_size()}))

    @classmethod
    def load(cls, record: TokensRecord, folder: Path, hashes: Mapping[str, str]) -> Self:
        """What `save` wrote.

        Args:
            record: what `config.json` says of it.
            folder: the model folder.
            hashes: SHA-256 of each of its files by name.

        Raises:
            InputError: the file is missing, altered, or no tokenizer.
        """
        path = folder / record.file
        if not path.is_file() or path.parent != folder:
            raise InputError(f"{path} is missing; restore it or train again.")
        if sha256(path) != hashes.get(record.file):
            raise InputError(f"{path} is not the file that config.json names: its SHA-256 differs. Restore it.")
        try:
            return cls(Tokenizer.from_file(str(path)), record.length, record.gives)
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"{path} is no tokenizer ({error}); restore the file.") from error

    def __call__(self, captions: Sequence[str]) -> Text:
        """int64 ids B×L and their mask."""
        rows: list[list[int]] = []
        for caption, encoded in zip(captions, self.tokenizer.encode_batch_fast(list(captions)), strict=True):
            ids = encoded.ids
            if len(ids) > self.length:
                self._tell(caption, ids)
            rows.append(ids[: self.length] if caption.strip() else [])
        width = padded_length(max((len(row) for row in rows), default=0))
        values, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
        for row, ids in enumerate(rows):
            values[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask[row, : len(ids)] = True
        return Text(values, mask)

    def _tell(self, caption: str, ids: Sequence[int]) -> None:
        if not self._told:
            self._told = True
            kept = self.tokenizer.decode(list(ids[: self.length]))
            _LOG.warning(
                "a caption of %d tokens is cut to %d, after '…%s' (said once).", len(ids), self.length, kept[-40:]
            )

    def save(self, folder: Path, number: int) -> tuple[TokensRecord, dict[str, str]]:
        """Write the tokenizer as JSON."""
        name = f"tokenizer-{number}.json"
        self.tokenizer.save(str(folder / name))
        return TokensRecord(length=self.length, gives=self.gives, file=name), {name: sha256(folder / name)}
