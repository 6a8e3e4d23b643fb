"""The game of a discriminator D and a generator: losses, their balance, and what keeps D from winning outright.

Logits are B×1×h×w or of any shape B×…; a figure per sample is a mean over all but the first axis, in float32 or wider.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-4


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of each pair, B: ½[mean relu(1 − D(x)) + mean relu(1 + D(x̂))] (Lim and Ye 2017).

    It is 1 for a discriminator that says 0 of everything, and 0 for one that is sure and right.

    Args:
        real: logits of pictures, B×….
        fake: logits of reconstructions or samples, of the same shape.
    """
    return (_mean(F.relu(1 - _wide(real))) + _mean(F.relu(1 + _wide(fake)))) / 2


def generator_hinge(fake: Tensor) -> Tensor:
    """The generator's loss of each sample, B: −mean D(x̂), of logits B×…."""
    return -_mean(_wide(fake))


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layers: Sequence[Tensor], limit: float = 1e4
) -> Tensor:
    """The weight at which an adversarial loss pulls the layers that make the pixels as hard as the reconstruction does.

    clip(‖∇ reconstruction‖ / (‖∇ adversarial‖ + 10⁻⁴), 0, limit), gradients by the last layer (VQGAN,
    Esser et al. 2021), or by all of them together where pixels are a sum of several layers' outputs. The graph is kept
    for the backward pass that follows.

    Args:
        reconstruction: the loss, a scalar that depends on `last_layers`.
        adversarial: the generator's loss, likewise.
        last_layers: weights that both reach, requiring gradients.
        limit: the greatest weight.

    Returns:
        A scalar without a gradient, in [0, limit].
    """
    layers = tuple(last_layers)
    with torch.autocast(layers[0].device.type, enabled=False):
        norms = [
            torch.stack(
                [torch.linalg.vector_norm(_wide(grad)) for grad in torch.autograd.grad(loss, layers, retain_graph=True)]
            ).norm()
            for loss in (reconstruction, adversarial)
        ]
    return (norms[0] / (norms[1] + _LEAST)).clamp(0, limit).detach()


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """‖∇ₓ Σ logits‖² of each sample, B: R1 where x are real pictures, R2 where generated (Mescheder et al. 2018).

    The logits of one sample must not depend on another's pixels. It is differentiable once more, for the weights; its
    factor is γ/2 in the paper.

    Args:
        logits: D(x), B×….
        x: the pictures given to D, B×C×H×W, which required a gradient when they were.
    """
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return _wide(slope).square().flatten(1).sum(1)


def lecam(real: Tensor, fake: Tensor, mean_real: Tensor | float, mean_fake: Tensor | float) -> Tensor:
    """LeCam regularisation of each pair, B: mean (D(x) − m_fake)² + mean (D(x̂) − m_real)² (Tseng et al. 2021, eq. 7).

    It holds the logits of one side near what the other's have been: useful where pictures are few.

    Args:
        real: logits of pictures, B×….
        fake: logits of reconstructions or samples, of the same shape.
        mean_real: m_real, running mean of past logits of pictures, a scalar without a gradient.
        mean_fake: m_fake, of past logits of reconstructions.
    """
    return _mean((_wide(real) - mean_fake).square()) + _mean((_wide(fake) - mean_real).square())


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1) if x.dim() > 1 else x
