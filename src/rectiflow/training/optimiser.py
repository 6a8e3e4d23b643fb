"""Optimisers, what each of them moves, and their learning rate as a function of the step."""

import math

import torch
from torch import Tensor, nn

from rectiflow.base.errors import InputError
from rectiflow.training.blocks import repeated_blocks
from rectiflow.training.config import OptimiserConfig


def optimisers(module: nn.Module, config: OptimiserConfig) -> tuple[torch.optim.Optimizer, ...]:
    """The optimisers that together move every trained parameter of `module`, each parameter by one of them.

    Muon (Jordan et al. 2024) moves a hidden matrix along the nearest semi-orthogonal matrix to its averaged gradient;
    steps are scaled by 0.2·√max(rows, columns), so that their root mean square is AdamW's (Liu et al. 2025) and one
    rate serves both.

    Raises:
        InputError: Muon is asked for, and the network has no hidden matrices.
    """
    trained: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if config.kind == "adamw":
        return (_adamw(trained, config),)
    matrices = hidden_matrices(module)
    if not matrices:
        raise InputError(
            "optimiser.kind is muon, but the network has no linear maps in repeated blocks; set optimiser.kind=adamw."
        )
    chosen = {id(p) for p in matrices}
    muon = torch.optim.Muon(
        matrices,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return muon, _adamw([p for p in trained if id(p) not in chosen], config)


def fill_state(optimiser: torch.optim.Optimizer) -> None:
    """Give an optimiser now the state, all of it 0, that it would make in its first step.

    torch makes up a state with one step done for an optimiser that has none yet when its state is asked for, and so a
    checkpoint would change the training of a part that begins later.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    for group in optimiser.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimiser.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """What Muon is for: the weight of each linear map in a repeated block, save those named `modulation`.

    A modulation reads the condition, not hidden features, and starts at zero. Kernels of convolutions, embeddings,
    biases and everything outside of the blocks are no hidden matrices.
    """
    return [
        layer.weight
        for block in repeated_blocks(module)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and "modulation" not in name.split(".")
    ]


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Rate at `step` (0 … steps−1): up over the warm-up, then down to 0 after the last step, unless constant."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    match config.decay:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
        case "trapezoid":
            return config.lr * min(1.0, (steps - step) / (config.decay_share * steps))


def _adamw(parameters: list[Tensor], config: OptimiserConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
