"""The encoders of a run or of a saved model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rectiflow.conditioning.config import FrozenConfig, LearnedConfig, TextConfig, TextRecord, TokensRecord
from rectiflow.conditioning.encoder_files import encoder_folder
from rectiflow.conditioning.frozen import Frozen
from rectiflow.conditioning.text import TextEncoder
from rectiflow.conditioning.tokens import Tokens
from rectiflow.networks.config import TokensInput


def encoders(
    config: TextConfig, captions: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[TextEncoder, ...]:
    """What a run reads captions by.

    Args:
        config: its settings.
        captions: what byte pairs are learned from.
        device: where frozen encoders compute.

    Raises:
        InputError: there are no captions, or an encoder cannot be loaded.
    """
    return tuple(_encoder(each, captions, device) for each in config.encoders)


def check_encoders(config: TextConfig) -> None:
    """Nothing, if the frozen encoders that `config` names are there and can be read; their weights are not loaded.

    Raises:
        InputError: one is missing or of a wrong kind, or reads fewer tokens than are asked for.
    """
    for each in config.encoders:
        if isinstance(each, FrozenConfig):
            Frozen(each, encoder_folder(each.name))


def _encoder(config: LearnedConfig | FrozenConfig, captions: Sequence[str], device: torch.device | str) -> TextEncoder:
    if isinstance(config, FrozenConfig):
        return Frozen(config, encoder_folder(config.name), device)
    gives = TokensInput(width=config.width, depth=config.depth)
    return Tokens.train(captions, config.vocabulary, config.length, gives)


def saved_encoders(
    records: Sequence[TextRecord], folder: Path, hashes: Mapping[str, str], device: torch.device | str = "cpu"
) -> tuple[TextEncoder, ...]:
    """The encoders of a model folder.

    Args:
        records: what `config.json` says of them.
        folder: the model folder.
        hashes: SHA-256 of each of its files by name.
        device: where frozen encoders compute.

    Raises:
        InputError: one is missing or altered.
    """
    return tuple(
        Tokens.load(record, folder, hashes)
        if isinstance(record, TokensRecord)
        else Frozen.load(record, folder, hashes, device)
        for record in records
    )
