"""Generators of one step, of the same network as a flow: a VAE's decoder and a GAN's generator.

Each is a flow that knows the average velocity u from t = 1 to t = 0 alone: x = z − u(z), with z ~ N(0, I) of the
shape of x. So a VAE, a GAN and a flow of equal size differ in nothing but what they are trained by.
"""

import math
from abc import abstractmethod
from collections.abc import Hashable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rectiflow.base.condition import Condition
from rectiflow.data.images import ImageSet
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.networks.config import Inputs, fitted
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.stages import Latents, PictureStage

_CRITIC_TIME = 0.0


class OneStepStage(PictureStage):
    """A generator of one step with a second network that is needed only to train it.

    Args:
        config: the run.
        data: what to train on.
        device: where to train.
        latents: the autoencoder and what it made of the data; pixel space if left out.
    """

    def __init__(self, config: RunConfig, data: ImageSet, device: torch.device, latents: Latents | None = None) -> None:
        super().__init__(config, data, device, latents)
        network = self.config.network
        open_again = network.model_copy(update={"channels": None})
        name, times = self._other()
        other = build(fitted(open_again, Inputs(times * (network.channels or 0), len(data.class_names)))).to(device)
        self.module = nn.ModuleDict({"generator": self.flow, name: other})

    @abstractmethod
    def _other(self) -> tuple[str, int]:
        """Name of the second network, and how many times the channels of the data it has."""

    def flow_of(self, module: nn.Module) -> Flow:
        """The generator."""
        generator = module.get_submodule("generator")
        assert isinstance(generator, Flow)
        return generator


@final
class VAEStage(OneStepStage):
    """A variational autoencoder (Kingma & Welling 2014): −log p(x|z) + KL(q(z|x) ‖ N(0, I)), in nats per dimension.

    q(z|x) = N(m(x), s(x)²) by the encoder, p(x|z) = N(z − u(z), σ²I) by the generator with σ = `vae.deviation`. The
    encoder is a network of twice the channels, given (x, 0) and giving (m, log s²).
    """

    def _other(self) -> tuple[str, int]:
        return "encoder", 2

    def loss(self, step: int, part: slice = slice(None), turn: str = "") -> Tensor:
        """The mean bound over the batch of `step`, or the share of a part of it."""
        x, condition, index = self._batch(step, part)
        reconstruction, divergence = self._bound(self.module, x, self._noise("posterior", step, index, x), condition)
        return (reconstruction + self.config.vae.beta * divergence).sum() / self.config.batch

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """The bound on the first 1,024 held-out samples at fixed draws, and its two terms, in nats per dimension."""
        terms = [
            torch.stack(self._bound(module, x, self._noise("held-out posterior", 0, part, x), condition))
            for x, condition, part in self._held_out_batches()
        ]
        if not terms:
            return {}
        reconstruction, divergence = torch.cat(terms, dim=1).mean(1).tolist()
        return {
            "held_out_loss": reconstruction + divergence,
            "held_out_reconstruction": reconstruction,
            "held_out_divergence": divergence,
        }

    def _bound(self, module: nn.Module, x: Tensor, draw: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """−log p(x|z) and the KL divergence of each sample, in nats per dimension; gradients if `module` trains."""
        deviation = self.config.vae.deviation
        with torch.set_grad_enabled(module.training):
            time = torch.zeros(len(x), device=self.device)
            both = module.get_submodule("encoder")(torch.cat([x, torch.zeros_like(x)], dim=1), time, condition)
            mean, log_variance = both.chunk(2, dim=1)
            z = mean + (log_variance / 2).exp() * draw
            made = generate(self.flow_of(module), z, condition)
            reconstruction = ((x - made) / deviation).square() / 2 + math.log(deviation * math.sqrt(2 * math.pi))
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
            return reconstruction.flatten(1).mean(1), divergence.flatten(1).mean(1)


@final
class GANStage(OneStepStage):
    """A generator against a critic: relativistic pairs with both gradient penalties (Huang et al. 2024, "R3GAN").

    With D the mean of the critic's output, x real and G = z − u(z): the critic minimises
    softplus(D(G) − D(x)) + γ/2·(‖∇D(x)‖² + ‖∇D(G)‖²), the generator softplus(D(x) − D(G)). Each is trained in its own
    turn, and neither turn leaves a gradient in the other's network.
    """

    turns = ("generator", "critic")

    def _other(self) -> tuple[str, int]:
        return "critic", 1

    def loss(self, step: int, part: slice = slice(None), turn: str = "generator") -> Tensor:
        """The mean loss of one of the two over the batch of `step`, or the share of a part of it."""
        x, condition, index = self._batch(step, part)
        made = generate(self.flow, self._noise(f"{turn} noise", step, index, x), condition)
        if turn == "generator":
            losses = F.softplus(self._judge(x, condition) - self._judge(made, condition))
        elif step % self.config.gan.penalty_every:
            losses = F.softplus(self._judge(made.detach(), condition) - self._judge(x, condition))
        else:
            losses = self._with_penalty(x, made.detach(), condition)
        return losses.sum() / self.config.batch

    def kind(self, step: int) -> Hashable:
        """By the penalty too."""
        return super().kind(step), step % self.config.gan.penalty_every == 0

    def _with_penalty(self, x: Tensor, made: Tensor, condition: Condition | None) -> Tensor:
        """The critic's loss of each pair with the penalty on its gradients, which counts for the steps without."""
        x, made = x.detach().requires_grad_(), made.requires_grad_()
        # The penalty differentiates twice, which torch's fused attention does not.
        with sdpa_kernel(SDPBackend.MATH):
            real, fake = self._judge(x, condition), self._judge(made, condition)
            slopes = torch.autograd.grad([real.sum(), fake.sum()], [x, made], create_graph=True)
        squares = sum((slope.square().flatten(1).sum(1) for slope in slopes), start=torch.zeros_like(real))
        return F.softplus(fake - real) + self.config.gan.penalty_every * self.config.gan.penalty / 2 * squares

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Share of held-out pictures that the critic ranks above a generated one; ½ is a draw."""
        ranked, flow = [], self.flow_of(module)
        for x, condition, part in self._held_out_batches():
            with torch.no_grad():
                made = generate(flow, self._noise("held-out noise", 0, part, x), condition)
                ranked.append(self._judge(x, condition, module) > self._judge(made, condition, module))
        return {"held_out_ranked": float(torch.cat(ranked).float().mean())} if ranked else {}

    def _judge(self, x: Tensor, condition: Condition | None, module: nn.Module | None = None) -> Tensor:
        critic = (module or self.module).get_submodule("critic")
        time = torch.full((len(x),), _CRITIC_TIME, device=self.device)
        score: Tensor = critic(x, time, condition).flatten(1).mean(1)
        return score


def generate(flow: Flow, z: Tensor, condition: Condition | None) -> Tensor:
    """x = z − u(z) of a one-step flow, B×…, with gradients."""
    return z - flow(z, torch.ones((), dtype=torch.float64), condition).value
