"""The variational bound of a whole chain: pictures → latents by an encoder, latents → noise by a flow.

−log p(x) ≤ E_q(l|x)[−log p(x|l)] − H(q(l|x)) + E_q[the flow's bound on −log p(l)], with q = N(m, s²) the encoder's
posterior and H its entropy (Vahdat, Kreis & Kautz 2021, "Score-based generative modeling in latent space").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.flow import AbstractFlow
from rectiflow.sampling.bound import Bound, BoundConfig, variational_bound


@dataclass(frozen=True)
class ChainBound:
    """The terms of the bound on −log p of B pictures, in nats.

    Args:
        decoder: B, −log p(x|l) at the latents drawn.
        entropy: B, of the encoder's posterior.
        latents: the flow's bound on −log p(l), term by term.
        dimensions: d of a picture.
    """

    decoder: Tensor
    entropy: Tensor
    latents: Bound
    dimensions: int

    @property
    def nats(self) -> Tensor:
        """The bound on −log p, B."""
        return self.decoder - self.entropy + self.latents.nats

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension of a picture, B."""
        return self.nats / (self.dimensions * math.log(2))


def chain_bound(
    flow: AbstractFlow,
    posterior: tuple[Tensor, Tensor],
    decoder: Callable[[Tensor], Tensor],
    dimensions: int,
    condition: Condition | None = None,
    config: BoundConfig | None = None,
    index: Tensor | None = None,
) -> ChainBound:
    """The bound on −log p(x) of pictures x known by their posterior and their decoder, at one draw of the latents.

    Args:
        flow: of latents, with a Gaussian source.
        posterior: mean m and deviation s > 0 of q(l|x), each B×…, in the units that the flow knows.
        decoder: −log p(x|l) in nats, B, of latents l B×….
        dimensions: d of a picture.
        condition: B conditions; None is the null condition.
        config: of the flow's bound, which is of a density: levels must be 0.
        index: as for `variational_bound`.

    Raises:
        InputError: levels, a deviation that is not above 0, or what `variational_bound` refuses.
    """
    config = config or BoundConfig()
    mean, std = posterior
    if config.levels:
        raise InputError("latents have no levels: expected levels=0; the levels of pictures belong to the decoder.")
    if bool((std <= 0).any()):
        raise InputError("the posterior's deviation must be above 0 everywhere: without it the bound is infinite.")
    index = torch.arange(len(mean)) if index is None else index
    latents = mean + std * Key(config.seed, "bound latents").normal(index, mean.shape[1:]).to(mean)
    entropy = (std.double().log() + 0.5 * math.log(2 * math.pi * math.e)).flatten(1).sum(1)
    bound = variational_bound(flow, latents, condition, config, index)
    return ChainBound(decoder(latents).double(), entropy, bound, dimensions)
