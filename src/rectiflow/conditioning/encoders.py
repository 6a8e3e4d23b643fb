"""The encoders of a run or of a saved model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rectiflow.conditioning.config import LearnedConfig, TextConfig, TextRecord, TokensRecord
from rectiflow.conditioning.text import TextEncoder
from rectiflow.conditioning.tokens import Tokens
from rectiflow.networks.config import TokensInput


def encoders(config: TextConfig, captions: Sequence[str]) -> tuple[TextEncoder, ...]:
    """What a run reads captions by; byte pairs are learned from `captions`.

    Raises:
        InputError: there are no captions, or an encoder cannot be loaded.
    """
    return tuple(_encoder(each, captions) for each in config.encoders)


def _encoder(config: object, captions: Sequence[str]) -> TextEncoder:
    assert isinstance(config, LearnedConfig)
    gives = TokensInput(width=config.width, depth=config.depth)
    return Tokens.train(captions, config.vocabulary, config.length, gives)


def saved_encoders(records: Sequence[TextRecord], folder: Path, hashes: Mapping[str, str]) -> tuple[TextEncoder, ...]:
    """The encoders of a model folder.

    Args:
        records: what `config.json` says of them.
        folder: the model folder.
        hashes: SHA-256 of each of its files by name.

    Raises:
        InputError: one is missing or altered.
    """
    return tuple(_saved(record, folder, hashes) for record in records)


def _saved(record: TextRecord, folder: Path, hashes: Mapping[str, str]) -> TextEncoder:
    assert isinstance(record, TokensRecord)
    return Tokens.load(record, folder, hashes)
