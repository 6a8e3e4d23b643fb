"""The repeated blocks of a network, and what is done to them from outside: memory format, recomputation, compiling.

Networks know nothing of this; names of weights, and so saving, averages and resuming, stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rectiflow.base.errors import InputError
from rectiflow.training.config import TrainingConfig


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, in its own order: the members of what it, or a part of it, calls `blocks`.

    `blocks` is an `nn.ModuleList`, or a property that gives a list of modules. Blocks within blocks belong to the outer
    ones. A network without `blocks` has none.
    """
    found = getattr(module, "blocks", None)
    listed = found if isinstance(found, nn.ModuleList | list | tuple) else ()
    own = [block for block in listed if isinstance(block, nn.Module)]
    inside = {id(part) for block in own for part in block.modules()}
    others = [block for child in module.children() for block in repeated_blocks(child)]
    return own + [block for block in others if id(block) not in inside]


def apply_switches(module: nn.Module, config: TrainingConfig) -> None:
    """Do to `module`, in place, what `channels_last`, `activation_checkpointing` and `compile` ask for.

    Raises:
        InputError: activations are to be recomputed block by block, and the network has no blocks.
    """
    blocks = repeated_blocks(module)
    if config.channels_last:
        _to_channels_last(module)
    if config.activation_checkpointing:
        if not blocks:
            raise InputError("activation_checkpointing needs a network with blocks; this one has none, leave it out.")
        for block in blocks:
            _recompute(block)
    if config.compile:
        for part in blocks or list(module.children()) or [module]:
            part.compile()


def _to_channels_last(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _recompute(block: nn.Module) -> None:
    """Keep only the block's input for the backward pass, and compute the rest again there (Chen et al. 2016)."""
    # A partial of a bound method, since a deep copy of it belongs to the copied block; a closure would not.
    forward: Callable[..., Any] = partial(checkpoint, block.forward, use_reentrant=False)
    block.forward = forward
