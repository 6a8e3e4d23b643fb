"""AdamW and its learning rate as a function of the step."""

import math

import torch
from torch import nn

from rectiflow.training.config import OptimiserConfig


def adamw(module: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW in its fused kernel."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


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
