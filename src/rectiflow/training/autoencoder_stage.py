"""The training of an autoencoder, against a discriminator if asked for."""

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor, nn

from rectiflow.autoencoders.adversarial import adaptive_weight, generator_hinge, gradient_penalty, hinge, lecam
from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import check_frames, check_sides, fitted
from rectiflow.autoencoders.discriminator import Discriminator, VideoDiscriminator, most_layers
from rectiflow.autoencoders.equivariance import Move
from rectiflow.autoencoders.frames import fold, grouped
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.patch_code import PatchCode
from rectiflow.autoencoders.perceptual import LPIPS, read_lpips
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.structure import structure_loss
from rectiflow.autoencoders.vae import VAE
from rectiflow.autoencoders.video_vae import VideoVAE
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, ImageSet, frames_of, to_float
from rectiflow.data.loader import Loader
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.evaluation.linear_code import linear_code
from rectiflow.evaluation.reconstruction import psnr, sheet
from rectiflow.models.autoencoder import load_autoencoder, save_autoencoder
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.config import OptimiserConfig
from rectiflow.training.diagnostics import latent_diagnostics, latents_dead, verdict
from rectiflow.training.parts import share
from rectiflow.training.stage import Stage

_HELD_OUT, _CHUNK, _STATISTICS = 256, 32, 1024
_PATCHES, _CLIPS = 256, 32  # pictures or clips that the linear code is fitted to; the fewest clips of a figure
_LECAM_DECAY = 0.99
_GROWN = 200  # steps of a discriminator before it is judged


@final
class AutoencoderStage(Stage):
    """A VAE by reconstruction and KL divergence, and from a step on against a PatchGAN that learns in its own turn.

    With w = `discriminator.weight` and the adaptive weight λ (`adaptive_weight`), a step minimises
    mean|x − x̂| + … + kl·KL − w·λ·mean D(x̂) by the autoencoder, then the hinge loss by the discriminator, on the same
    reconstructions. Neither turn leaves a gradient in the other's network. Where a batch is taken in parts, λ is each
    part's own, so that parts add up to the whole but for λ. Clips go through whole, against a discriminator of clips;
    structure, perceptual distance and PSNR are of their frames.

    Args:
        config: the run.
        data: pictures or clips to train on.
        device: where to train.
        begun: whether its weights will come from a checkpoint: what it would begin from may be gone.
    """

    config: AutoencoderRunConfig

    def __init__(self, config: AutoencoderRunConfig, data: ImageSet, device: torch.device, begun: bool = False) -> None:
        config = config.model_copy(update={"network": fitted(config.network, data.shape[0])})
        # An autoencoder of pictures takes clips frame by frame.
        data = frames_of(data) if config.network.temporal == 1 else data
        self.config, self.data, self.device = config, data, device
        check_sides(config.network.factor, data.size)
        check_frames(config.network.temporal, data.shape)
        self.samples_per_step = config.batch
        self.loader = Loader(data.train, config.data, config.batch, config.steps, config.seed, share(config))
        torch.manual_seed(config.seed % 2**63)
        self.vae, self.turns = build_autoencoder(config.network), ("autoencoder",)
        if config.start_from and not begun:
            _start(self.vae, config.start_from)
        elif self.vae.code is not None and not begun:
            self._begin_from_linear_code(self.vae.code)
        networks: dict[str, nn.Module] = {"autoencoder": self.vae}
        self.discriminator: Discriminator | VideoDiscriminator | None = None
        if config.discriminator.weight:
            asked = config.discriminator
            layers = most_layers(min(data.size), asked.layers)
            kind = Discriminator if config.network.temporal == 1 else VideoDiscriminator
            self.discriminator = kind(data.shape[0], asked.width, layers)
            networks["discriminator"], self.turns = self.discriminator, ("autoencoder", "discriminator")
        self.module = nn.ModuleDict(networks)
        # Running means of the logits of real and made pictures, and the steps they were taken over (LeCam).
        self.module.register_buffer("logits", torch.zeros(3))
        self.module.to(device)
        self.perceptual: LPIPS | None = (
            read_lpips(config.loss.perceptual).to(device) if config.loss.perceptual else None
        )
        self._made: dict[tuple[int, int | None], Tensor] = {}

    def _begin_from_linear_code(self, code: PatchCode) -> None:
        """The principal components of training patches, as the first batches show them, or some clips."""
        numbers = self.data.shape[0] * self.config.network.factor**2
        if self.config.network.latent_channels > numbers:
            raise InputError(
                f"network.latent_channels is {self.config.network.latent_channels}, but a linear code of patches of "
                f"{numbers} numbers has no more than these; set fewer channels or network.linear=false."
            )
        if isinstance(self.vae, VideoVAE):
            assert self.vae.later_code is not None
            clips = torch.cat(list(self._pictures(self.data.train, _CLIPS))).cpu()
            self._fit(code, fold(clips))
            self._fit(self.vae.later_code, grouped(clips[:, :, 1:], self.config.network.temporal))
        else:
            steps = range(-(-_PATCHES // self.config.batch))
            self._fit(code, torch.cat([self.loader(step).pixels for step in steps]))

    def _fit(self, code: PatchCode, pictures: Tensor) -> None:
        found = linear_code(pictures, self.config.network.factor, self.config.network.latent_channels)
        components = found.components
        deviations = found.eigenvalues[: len(components)].clamp_min(1e-6).sqrt()
        if self.config.isometric:
            square = Key(self.config.seed, "linear code").normal(torch.arange(1), (len(components),) * 2)[0]
            components = torch.linalg.qr(square.to(components))[0] @ components
            deviations = deviations.square().mean().sqrt().expand(len(components))
        code.begin_from(found.mean.float(), components.float(), deviations.float())

    def begins(self, turn: str) -> int:
        """The step from which a submodule is trained."""
        return self.config.discriminator_from[0] if turn == "discriminator" else 0

    def kind(self, step: int) -> Hashable:
        """By the adversary's part, the shape of the pictures, and whether they are shrunk and turned."""
        moved = bool(self._move_draw(step)[0] < self.config.loss.equivariance)
        return super().kind(step), step >= self.config.discriminator_from[1], moved, self.loader.kind(step)

    def changes_at(self, step: int) -> bool:
        """Where the adversary is first felt."""
        return self.discriminator is not None and step == self.config.discriminator_from[1]

    def detour(self, number: int) -> None:
        """Take the data in another order, and other draws with them."""
        super().detour(number)
        self.loader.reseed(self.seed)

    def optimiser_of(self, turn: str) -> OptimiserConfig:
        """How a submodule is moved: the discriminator at its own rate, if it has one."""
        rate = self.config.discriminator.lr
        if turn != "discriminator" or rate is None:
            return self.config.optimiser
        return self.config.optimiser.model_copy(update={"lr": rate})

    def loss(self, step: int, part: slice = slice(None), turn: str = "autoencoder") -> Tensor:
        """Mean loss of one of the two over the batch of `step`, or the share of a part of it."""
        x = self.loader(step, part).pixels.to(self.device)
        index = torch.arange(self.config.batch)[part]
        self.waited = self.loader.waited
        weight = len(index) / self.config.batch
        if turn == "discriminator":
            return weight * self._game(x, step, part)
        return weight * self._reconstruct(x, step, part, index)

    def _reconstruct(self, x: Tensor, step: int, part: slice, index: Tensor) -> Tensor:
        config, size = self.config, x[0].numel()
        move = self._move(step, x)
        draw = self._draw("posterior", step, index, x)
        made, moments = self.vae(x, draw, move)
        x = x if move is None else move(x, config.network.factor)
        posterior = Posterior.of(moments.float())
        divergence = posterior.divergence()
        terms = self._terms(made.float(), x)
        loss = sum(terms.values(), start=config.loss.kl * divergence.sum() / (len(x) * size))
        seen = {f"loss_{name}": term.detach() for name, term in terms.items()}
        seen |= latent_diagnostics(posterior, divergence)
        if self.discriminator is not None and step >= config.discriminator_from[0]:
            self._made[step, part.start] = made.detach()
            if step >= config.discriminator_from[1]:
                fool = generator_hinge(self.discriminator(made)).mean()
                weight = adaptive_weight(sum(terms.values(), start=torch.zeros_like(fool)), fool, self.vae.last_layers)
                loss = loss + config.discriminator.weight * weight * fool
                seen |= {"adaptive_weight": weight, "loss_adversarial": fool.detach()}
        self.observed = seen
        return loss

    def _terms(self, made: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The terms of the reconstruction that are asked for, each with its weight; scalars."""
        asked, terms = self.config.loss, {}
        if asked.absolute:
            terms["absolute"] = asked.absolute * (made - x).abs().mean()
        if asked.square:
            terms["square"] = asked.square * (made - x).square().mean()
        if asked.structure:
            terms["structure"] = asked.structure * structure_loss(fold(made), fold(x)).mean()
        if self.perceptual is not None:
            terms["perceptual"] = asked.perceptual_weight * self.perceptual(fold(made), fold(x)).mean()
        return terms

    def _game(self, x: Tensor, step: int, part: slice) -> Tensor:
        """The discriminator's loss, on what the autoencoder's turn of this step has made."""
        asked = self.config.discriminator
        made = self._made.pop((step, part.start), None)
        self._made = {key: kept for key, kept in self._made.items() if key[0] == step}
        if made is None:
            with torch.no_grad():
                index = torch.arange(self.config.batch)[part]
                made, _ = self.vae(x, self._draw("posterior", step, index, x), self._move(step, x))
        x = self._moved(step, x)  # a step of shrunk and turned pictures is judged beside real ones moved alike
        x = x.requires_grad_(asked.penalty > 0)
        assert self.discriminator is not None
        real, fake = self.discriminator(torch.cat([x, made.to(x.dtype)])).float().chunk(2)
        loss = hinge(real, fake).mean()
        if asked.penalty:
            loss = loss + asked.penalty / 2 * gradient_penalty(real, x).mean()
        if asked.lecam:
            mean_real, mean_fake, _ = self.module.get_buffer("logits").unbind()
            loss = loss + asked.lecam * lecam(real, fake, mean_real, mean_fake).mean()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        self.observed = {
            "logits_real": real.detach().mean(),
            "logits_made": fake.detach().mean(),
            "discriminator_accuracy": right,
        }
        return loss

    def settle(self, values: Mapping[str, Tensor]) -> None:
        """Move the running means of the logits."""
        if "logits_real" in values:
            logits = self.module.get_buffer("logits")
            newest = torch.stack([values["logits_real"], values["logits_made"]])
            share = torch.where(logits[2] > 0, 1 - _LECAM_DECAY, 1.0)
            logits[:2] = torch.lerp(logits[:2], newest.to(logits), share)
            logits[2] += 1

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """PSNR of 256 held-out pictures from the means of their latents, in dB, and the loss of these.

        Of clips as many as have so many frames, at least 32; PSNR is of their frames.
        """
        quality, losses, count = 0.0, 0.0, 0
        vae = _vae(module)
        for x in self._pictures(self.data.held_out, self._count(_HELD_OUT)):
            with torch.no_grad():
                made = vae.decode(vae.encode(x).mean).float()
                quality += float(psnr(fold(made), fold(x)).mean()) * len(x)
                losses += float(sum(self._terms(made, x).values())) * len(x)
            count += len(x)
        return {"held_out_psnr": quality / count, "held_out_loss": losses / count} if count else {}

    def preview(self, module: nn.Module) -> Image.Image:
        """Held-out pictures, what becomes of them, and the difference around grey, fourfold; a row each.

        Of clips the first, middle and last frame, what becomes of these beneath, and the difference beneath that.
        """
        vae = _vae(module)
        rows = []
        for x in self._pictures(self.data.unseen, self.config.preview):
            with torch.no_grad():
                rows.append(sheet(x, vae.decode(vae.encode(x).mean).float()))
        return grid(to_uint8(torch.cat(rows)), 3, screen_scale(*self.data.size))

    def save(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write the autoencoder, with the mean and deviation of its latents on training pictures."""
        vae = _vae(module)
        count = _STATISTICS if step == self.config.steps else _CHUNK
        save_autoencoder(LatentSpace(vae, *self._statistics(vae, count)), self.data.shape, self.origin(step), folder)

    def _statistics(self, vae: VAE | VideoVAE, count: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel over training pictures: of draws, so of E[s²] + Var[m]."""
        sums, number = torch.zeros(2, self.config.network.latent_channels, dtype=torch.float64), 0
        for x in self._pictures(self.data.train, self._count(count)):
            with torch.no_grad():
                posterior = vae.encode(x)
            mean, variance = posterior.mean.double().cpu(), posterior.log_variance.double().exp().cpu()
            by_channel = [each.transpose(0, 1).flatten(1).sum(1) for each in (mean, mean.square() + variance)]
            sums += torch.stack(by_channel)
            number += mean[:, 0].numel()
        mean, square = sums / number
        return mean, (square - mean.square()).clamp_min(1e-12).sqrt()

    def alarms(self, means: Mapping[str, float]) -> dict[str, str]:
        """Dead latents and a discriminator that has collapsed or won, with what to try."""
        old_enough = int(self.module.get_buffer("logits")[2]) >= _GROWN
        return {**latents_dead(means, self.config), **(verdict(means, self.config) if old_enough else {})}

    def _count(self, pictures: int) -> int:
        """How many samples stand for so many pictures."""
        return max(_CLIPS, pictures // self._frames)

    @property
    def _frames(self) -> int:
        return self.data.shape[1] if len(self.data.shape) == 4 else 1

    def _pictures(self, images: Images, count: int) -> Iterator[Tensor]:
        # From all over the set, whose order may mean something.
        index = Key(self.config.seed, "shown pictures").permutation(len(images))[:count] if len(images) else None
        for chunk in () if index is None else torch.split(index, max(1, _CHUNK // self._frames)):
            yield to_float(images.fetch(chunk)).to(self.device)

    def _move(self, step: int, x: Tensor) -> Move | None:
        """How this step's latents are shrunk and turned, if they are."""
        uniform = self._move_draw(step)
        if uniform[0] >= self.config.loss.equivariance:
            return None
        factor = self.config.network.factor
        # Never smaller than what the discriminator can see.
        least = 1 if self.discriminator is None else -(-self.discriminator.least_side // factor)
        return Move.drawn(uniform[1:], x.shape[-2] // factor, x.shape[-1] // factor, least)

    def _move_draw(self, step: int) -> Tensor:
        return self._key("equivariance", step).uniform(torch.arange(1), (3,))[0]

    def _moved(self, step: int, x: Tensor) -> Tensor:
        move = self._move(step, x)
        return x if move is None else move(x, self.config.network.factor)

    def _draw(self, purpose: str, step: int, index: Tensor, x: Tensor) -> Tensor:
        shape = self.config.network.latent_shape(x.shape[1:])
        return self._key(purpose, step).normal(index, shape).to(self.device)

    def _key(self, purpose: str, step: int) -> Key:
        return Key(self.seed, f"autoencoder {purpose}", step)


def _vae(module: nn.Module) -> VAE | VideoVAE:
    """The autoencoder in the trained module or its average."""
    vae = module.get_submodule("autoencoder")
    assert isinstance(vae, VAE | VideoVAE)
    return vae


def _start(vae: VAE | VideoVAE, name: str) -> None:
    """From the autoencoder of pictures of that name."""
    assert isinstance(vae, VideoVAE)
    found = load_autoencoder(name).network
    if not isinstance(found, VAE):
        raise InputError(f"start_from={name} is an autoencoder of clips; name one of pictures, or leave it out.")
    vae.start_from_image(found)
