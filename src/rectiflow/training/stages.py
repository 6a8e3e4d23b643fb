"""What one kind of training optimises."""

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor, nn

from rectiflow.autoencoders.autoencoder import Autoencoder, Identity
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.encoders import encoders
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.images import Images, ImageSet, to_float
from rectiflow.data.loader import Loader
from rectiflow.data.paired import with_pairs
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.flow.coupling import coupling
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.flow.source import Pictures
from rectiflow.flow.times import stratified
from rectiflow.flow.weight import weighted_times
from rectiflow.networks.build import build
from rectiflow.networks.config import Inputs, NetworkConfig, fitted
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.training.bands import by_noise_level
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.given import APicture, Frames, Giver, Nothing, Taken
from rectiflow.training.parts import share
from rectiflow.training.stage import Stage

_CHUNK = 256
_HELD_OUT = 1024
_FRAMES = 9  # of a clip in a preview
_READ = 200_000  # captions that byte pairs are learned from, at most


@dataclass(frozen=True)
class Latents:
    """A frozen autoencoder and a set in its latents.

    Args:
        autoencoder: its maker.
        data: the moments of each picture, normalised means and log-variances, 2C′×h×w.
    """

    autoencoder: LatentSpace
    data: ImageSet


def _captions(images: Images) -> list[str]:
    return list(islice(images.every_caption(), _READ)) if images.captioned else []


def _check_shapes(network: NetworkConfig, data: ImageSet) -> None:
    """Nothing, if the network divides every shape of a bucket; a single one it will tell of itself."""
    part = network.multiple
    if any(side % part for shape in data.shapes[1:] for side in shape[-2:]):
        raise InputError(
            f"some buckets have sides that the network's {part} does not divide; set data.multiple to a multiple of it."
        )


def _channels(picture: PictureConfig, data: ImageSet) -> int:
    """Of what is given of the pictures; every shape of them must suit."""
    for shape in data.shapes:
        degradation(picture).shape(shape)
    return degradation(picture).channels(data.shape[0])


def _giver(config: RunConfig, data: ImageSet) -> Giver:
    if config.picture is not None:
        return APicture(config.picture, data, config.seed)
    return Nothing() if config.frames is None else Frames(config.frames, config.seed)


class PictureStage(Stage):
    """What all generators of labelled pictures share: batches, keyed draws, previews and the saved pipeline.

    Args:
        config: the run; the attribute of that name has what its network leaves open taken from the data.
        data: what to train on.
        device: where to train.
        latents: the autoencoder and what it made of the data, if the generator works in latents; else pixel space.
    """

    config: RunConfig

    def __init__(self, config: RunConfig, data: ImageSet, device: torch.device, latents: Latents | None = None) -> None:
        self.autoencoder: Autoencoder = latents.autoencoder if latents else Identity()
        self.encoders = () if config.text is None else encoders(config.text, _captions(data.train), device)
        classes = 0 if self.encoders else len(data.class_names)  # a caption says it better
        texts = tuple(encoder.gives for encoder in self.encoders)
        channels, picture = self.autoencoder.latent_shape(data.shape)[0], 0
        if config.picture is not None:
            data, picture = with_pairs(data, config.picture, config.data), _channels(config.picture, data)
        if config.frames is not None:
            picture = channels
        network = fitted(config.network, Inputs(channels, classes, texts, picture))
        _check_shapes(network, data)
        config = config.model_copy(update={"network": network})
        self.config, self.data, self.device = config, data, device
        # A network without classes is an unconditional model, whatever labels the data have.
        self.class_names = data.class_names if network.classes else ()
        self.giver = _giver(config, data)
        self.samples_per_step = config.batch
        self.stored = latents.data if latents else data
        self.loader = self._loader(self.stored.train, config.seed)
        torch.manual_seed(config.seed % 2**63)
        self.flow = Flow.build(build(network), config.flow).to(device)
        self.sources: Loader | None = None

    def bridge_from(self, source: ImageSet) -> None:
        """Start from pictures of `source`, of the shape of the data, in place of noise."""
        config = self.config
        # Another order than the data's, or equal numbers of pictures would be paired as they are sorted.
        self.sources = self._loader(source.train, ~config.seed)
        shown = source.unseen
        self.flow.source = Pictures(lambda rows: self.autoencoder.encode(to_float(shown.fetch(rows))), len(shown))

    def _loader(self, images: Images, seed: int) -> Loader:
        """Of the positions in a batch that this process trains on: all of them where samples are paired over it."""
        config = self.config
        mine = slice(None) if config.objective == "flow" and coupling(config.flow).whole else share(config)
        return Loader(images, config.data, config.batch, config.steps, seed, mine)

    def kind(self, step: int) -> Hashable:
        """By the shape of the pictures."""
        return super().kind(step), self.loader.kind(step)

    def detour(self, number: int) -> None:
        """Take the data in another order, and other draws with them."""
        super().detour(number)
        self.loader.reseed(self.seed)
        if self.sources is not None:
            self.sources.reseed(~self.seed)

    @abstractmethod
    def flow_of(self, module: nn.Module) -> Flow:
        """The flow to sample from in `module`, the trained one or its average."""

    def preview(self, module: nn.Module) -> Image.Image:
        """A row of samples for each class, caption or given picture, guided if the null condition is trained."""
        asked = self.config.preview
        rows = 1 if self.class_names or self.encoders else min(asked.rows, len(self.data.unseen))
        given = self.giver.shown(self.data.unseen, asked.count if rows == 1 else rows)
        request = Request(
            classes=self.class_names[: asked.rows],
            prompts=self._shown_captions(asked.rows),
            count=asked.count if given is None else asked.count * rows,
            steps=asked.steps,
            solver=asked.solver,
            guidance=asked.guidance if self._null_trained and (self.class_names or self.encoders) else 0.0,
            picture=given if given is None or rows == 1 else given.repeat_interleave(asked.count, 0),
        )
        made = self._pipeline(module, 0).sample(request).pixels
        if made.dim() == 5:  # a row for each clip
            made = (
                made[:, :, torch.linspace(0, made.shape[2] - 1, _FRAMES).round().long()].transpose(1, 2).flatten(0, 1)
            )
        pixels = to_uint8(made)
        columns = asked.count if made.dim() == 4 and len(self.data.shape) == 3 else _FRAMES
        return grid(pixels, columns, screen_scale(*pixels.shape[1:3]))

    def save(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write the pipeline around the flow in `module`."""
        self._pipeline(module, step).save(folder)

    @property
    def _null_trained(self) -> bool:
        dropout, others = self.config.condition_dropout, bool(self.class_names or self.encoders)
        if self.config.picture is not None and not others:
            dropout, others = max(dropout, self.config.picture.dropout), True
        if self.config.frames is not None and not others:
            dropout, others = max(dropout, self.config.frames.nothing), True
        return others and dropout > 0 and not self.config.flow.one_step

    @property
    def _conditioner(self) -> Conditioner:
        picture = None if self.config.picture is None else self.config.picture.model_copy(update={"dir": ""})
        return Conditioner(self.class_names, self.encoders, picture, self.config.frames, self._null_trained)

    def _pipeline(self, module: nn.Module, step: int) -> Pipeline:
        return Pipeline(
            flow=self.flow_of(module),
            flow_config=self.config.flow,
            network_config=self.config.network,
            shape=self.data.shape,
            conditioner=self._conditioner,
            autoencoder=self.autoencoder,
            training=self.origin(step),
        )

    def _batch(self, step: int, part: slice) -> tuple[Tensor, Condition | None, Tensor]:
        """Latents, conditions and positions of a part of the batch of `step`."""
        index = torch.arange(self.config.batch)[part]
        self._seed(step, index)
        batch = self.loader(step, part)
        self.waited = self.loader.waited + (self.sources.waited if self.sources else 0.0)
        taken = self._taken(batch.pixels, batch.index, self._key("dequantise", step), index)
        image = self.giver.image(taken, step, index)
        return taken.latents, self._condition(batch.labels, batch.captions, image), index

    def _seed(self, step: int, index: Tensor) -> None:
        """What a network draws by itself, such as dropout, it draws from torch's generator: a part its own."""
        torch.manual_seed(int(self._key("network", step).words(index[:1], 1)))

    def _held_out_batches(self) -> Iterator[tuple[Tensor, Condition | None, Tensor]]:
        """The same of the first 1,024 held-out samples, in chunks."""
        held_out = self.stored.held_out
        for part in torch.split(torch.arange(min(len(held_out), _HELD_OUT)), _CHUNK):
            if len(part):
                taken = self._taken(to_float(held_out.fetch(part)), part, self._key("held-out dequantise"), part)
                image = self.giver.held_out_image(held_out, taken)
                yield taken.latents, self._condition(held_out.labels[part], held_out.captions(part), image), part

    def _source(self, step: int, index: Tensor, like: Tensor) -> Tensor:
        """What the samples at `index` of the batch of `step` start from."""
        if self.sources is None:
            return self._noise("noise", step, index, like)
        part = slice(int(index[0]), int(index[-1]) + 1)
        return self.autoencoder.encode(self.sources(step, part).pixels.to(self.device))

    def _noise(self, purpose: str, step: int, index: Tensor, like: Tensor) -> Tensor:
        return self.flow.source.sample(self._key(purpose, step), index, like.shape[1:]).to(self.device)

    def _condition(self, labels: Tensor, captions: Sequence[str], image: Tensor | None) -> Condition | None:
        condition = self._conditioner.condition(labels, captions, image)
        return None if condition is None else condition.to(self.device)

    def _dropped(self, condition: Condition, step: int, index: Tensor) -> Condition:
        """Some of the conditions replaced by ∅, and some captions by none for one of the encoders alone."""
        for number, part in enumerate(self.config.encoder_dropout):
            if part:
                chosen = self._key(f"caption dropout {number}", step).uniform(index) < part
                condition = condition.drop_text(number, chosen.to(self.device))
        condition = self.giver.dropped(condition, step, index)
        chosen = self._key("condition dropout", step).uniform(index) < self.config.condition_dropout
        return condition.drop(chosen.to(self.device))

    def _shown_captions(self, rows: int) -> tuple[str, ...]:
        """Captions of the first held-out pictures that have one."""
        unseen = self.data.unseen
        if not self.encoders:
            return ()
        found = unseen.captions(torch.arange(min(len(unseen), 10 * rows)))
        return tuple(caption for caption in found if caption)[:rows] or ("",)

    def _taken(self, pixels: Tensor, rows: Tensor, key: Key, index: Tensor) -> Taken:
        x, last = self._latents(pixels, key, index), None
        if len(self.data.shape) == 4 and x.shape[2] > 1:
            # A cache keeps the last frame by itself behind the clip; see `LatentSpace.stored_moments`.
            last = x[:, :, -1:]
            x = x if self.stored is self.data else x[:, :, :-1]
        return Taken(pixels, x, last, rows)

    def _latents(self, pixels: Tensor, key: Key, index: Tensor) -> Tensor:
        if self.stored is not self.data:
            # Moments from the cache: one draw from each picture's posterior.
            posterior = Posterior.of(pixels.to(self.device))
            return posterior.sample(key.normal(index, posterior.mean.shape[1:]).to(self.device))
        width = self.config.data.dequantise * 2 / (self.data.levels - 1)
        if width:
            pixels = pixels + (key.uniform(index, pixels.shape[1:]).float() - 0.5) * width
        return self.autoencoder.encode(pixels.to(self.device))

    def _key(self, purpose: str, step: int = 0) -> Key:
        return Key(self.config.seed if purpose.startswith("held-out") else self.seed, f"training {purpose}", step)


@final
class FlowStage(PictureStage):
    """Flow matching on a labelled set of pictures, with condition dropout; arguments as for `PictureStage`."""

    def __init__(self, config: RunConfig, data: ImageSet, device: torch.device, latents: Latents | None = None) -> None:
        super().__init__(config, data, device, latents)
        self.coupling = coupling(config.flow)
        self.times = partial(weighted_times, self.flow, config.times, config.weight)
        self.module = self.flow
        self.may_leave_out = bool(self.encoders) or len(data.shape) == 4

    def flow_of(self, module: nn.Module) -> Flow:
        """The module itself."""
        assert isinstance(module, Flow)
        return module

    def loss(self, step: int, part: slice = slice(None), turn: str = "") -> Tensor:
        """Mean flow-matching loss over the batch of `step`, or the share of a part of it."""
        # Pairing sees the whole batch, so that taking it in parts changes nothing.
        x, condition, index = self._batch(step, slice(None) if self.coupling.whole else part)
        z = self.coupling.pair(x, self._source(step, index, x), None if condition is None else condition.labels)
        if self.coupling.whole:
            x, z, index = x[part], z[part], index[part]
            self._seed(step, index)
            condition = None if condition is None else condition.select(part)
        density, weight = self.times(x.shape[1:])
        t = stratified(density, self._key("time", step), index, self.config.batch)
        if condition is not None:
            condition = self._dropped(condition, step, index)
        losses = flow_matching_loss(self.flow, x, t, z, condition, weight)
        self.observed = by_noise_level(losses, t)
        return losses.sum() / self.config.batch

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Mean loss of the first 1,024 held-out samples, each at its own fixed (t, z)."""
        flow, total = self.flow_of(module), 0.0
        count = min(len(self.stored.held_out), _HELD_OUT)
        for x, condition, part in self._held_out_batches():
            z = self._noise("held-out noise", 0, part, x)
            z = self.coupling.pair(x, z, None if condition is None else condition.labels)
            density, weight = self.times(x.shape[1:])
            t = stratified(density, self._key("held-out time"), part, count)
            with torch.no_grad():
                total += float(flow_matching_loss(flow, x, t, z, condition, weight).sum())
        return {"held_out_loss": total / count} if count else {}
