"""Weights as safetensors with their SHA-256."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype | None = None) -> str:
    """Write a network's weights; returns their SHA-256.

    Args:
        network: whose.
        path: the file.
        dtype: what its numbers are kept in; None is what they have. Whoever reads them has float32 again.

    Raises:
        OSError: the disk is full or read-only.
    """
    weights = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    try:
        save_file(weights, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return sha256(path)


def read_weights(network: nn.Module, path: Path, hashes: Mapping[str, str]) -> None:
    """Load a weight file into `network`.

    Args:
        network: of the architecture that config.json states.
        path: the file.
        hashes: SHA-256 of each weight file by its name.

    Raises:
        InputError: the file is missing, altered, unreadable, or its tensors have other names or shapes.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; restore it or train again.")
    if sha256(path) != hashes.get(path.name):
        raise InputError(f"{path} is not the file that config.json names: its SHA-256 differs. Restore the original.")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file: {error}.") from error
    wanted = network.state_dict()
    for name in sorted(set(wanted) | set(weights)):
        have, want = (tuple(d[name].shape) if name in d else "nothing" for d in (weights, wanted))
        if have != want:
            raise InputError(f"{path}: tensor {name}: config.json asks for {want}, the file holds {have}.")
    network.load_state_dict(weights)
