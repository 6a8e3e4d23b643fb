"""The files of a text encoder as `transformers` writes them: where they are, which they are, and their SHA-256."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256
from rectiflow.hub import fetch_encoder, is_hub_name

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
_SETTINGS = ("config.json", "tokenizer_config.json", "tokenizer.json")
_OTHERS = ("*.json", "*.txt", "*.model")


def encoder_folder(name: str) -> Path:
    """The folder of the encoder `name`, a local one or ORG/NAME on the hub.

    Raises:
        InputError: there is none, or it holds no encoder.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not is_hub_name(name):
            raise InputError(
                f"no text encoder at {name}; expected a folder that transformers wrote, or ORG/NAME on the hub."
            )
        folder = fetch_encoder(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no text encoder: it has no config.json, as transformers writes it.")
    for path in sorted(_matching(folder, _SETTINGS)):
        _check_json(path)
    if not _matching(folder, _VOCABULARIES):  # transformers would make up an empty one
        raise InputError(f"{folder} holds no tokenizer, expected its tokenizer.json beside the weights; copy it there.")
    weight_files(folder)
    return folder


def _check_json(path: Path) -> None:
    """Nothing, if a file holds a JSON object: transformers tells a broken one as something else."""
    try:
        whole = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} cannot be read, expected a JSON object; restore the text encoder's file.")


def weight_files(folder: Path) -> list[Path]:
    """The weights in `folder` that `transformers` would load, by name.

    Raises:
        InputError: there are none as safetensors, or one is missing.
    """
    files = [folder / _WEIGHTS]
    index = folder / _INDEX
    if not files[0].is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} cannot be read ({type(error).__name__}); restore the file.") from error
    for path in files:
        if not path.is_file():
            raise InputError(
                f"{path} is missing; a text encoder's weights are read as safetensors alone: save it again with "
                "save_pretrained, or choose another."
            )
    return files


def digest(folder: Path) -> str:
    """SHA-256 of what the states depend on: over the names and SHA-256 of the weights and of the vocabulary.

    Raises:
        InputError: a weight file is missing, or a file cannot be read.
    """
    files = {*weight_files(folder), *_matching(folder, _VOCABULARIES)}
    whole = hashlib.sha256()
    try:
        for path in sorted(files):
            whole.update(f"{sha256(path)}  {path.name}\n".encode())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    return whole.hexdigest()


def embed(folder: Path, inside: Path) -> dict[str, str]:
    """Put an encoder's files into a subfolder of a model; returns the SHA-256 of each by `SUBFOLDER/NAME`."""
    inside.mkdir()
    hashes = {}
    for path in sorted({*weight_files(folder), *_matching(folder, _OTHERS)}):
        place = inside / path.name
        try:
            os.link(path.resolve(), place)  # many gigabytes, at every save
        except OSError:
            shutil.copy2(path, place)
        hashes[f"{inside.name}/{path.name}"] = sha256(place)
    return hashes


def check_embedded(folder: Path, hashes: Mapping[str, str]) -> None:
    """Nothing, if `folder`, inside a model, holds what was put there.

    Raises:
        InputError: a file is missing, altered, or one that the model does not know.
    """
    known = {name: value for name, value in hashes.items() if name.startswith(f"{folder.name}/")}
    there = {f"{folder.name}/{path.name}" for path in folder.iterdir()} if folder.is_dir() else set()
    for name in sorted({*known, *there}):
        path = folder.parent / name
        if name not in there:
            raise InputError(f"{path} is missing; restore it or train again.")
        if name not in known or sha256(path) != known[name]:
            raise InputError(f"{path} is not the file that config.json names: its SHA-256 differs. Restore it.")


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
