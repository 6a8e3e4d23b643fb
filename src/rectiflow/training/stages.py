"""What one kind of training optimises."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor, nn

from rectiflow.autoencoders.autoencoder import Autoencoder, Identity
from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.data.images import ImageSet, to_float
from rectiflow.data.loader import Loader
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.flow.times import stratified, time_density
from rectiflow.flow.weight import LossWeight
from rectiflow.networks.build import build
from rectiflow.networks.config import fitted
from rectiflow.pipeline import Pipeline, Request
from rectiflow.training.config import RunConfig

_CHUNK = 256
_HELD_OUT = 1024


class Stage(ABC):
    """A module, its loss, and what a run wants to know and keep of it. All of it is a function of the step.

    Attributes:
        module: what is trained.
        samples_per_step: training samples that a step takes.
        waited: seconds that `loss` has spent waiting for data so far.
    """

    module: nn.Module
    samples_per_step: int
    waited: float = 0.0

    @abstractmethod
    def loss(self, step: int, part: slice = slice(None)) -> Tensor:
        """Mean loss over the batch of `step`, with gradients; a scalar.

        With `part`, a slice of positions in the batch, the share that these have in it: the shares of all parts add up
        to the mean.
        """

    @abstractmethod
    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Losses of `module` (the trained one or its average) on held-out data, by name; the same draws every time."""

    @abstractmethod
    def preview(self, module: nn.Module) -> Image.Image:
        """A picture of what `module` makes now; the same draws every time."""

    @abstractmethod
    def save(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write `module` as a model folder, after `step` steps."""


@final
class FlowStage(Stage):
    """Flow matching on a labelled set of pictures, with condition dropout.

    Args:
        config: the run; the attribute of that name has what its network leaves open taken from the data.
        data: what to train on.
        device: where to train.
        autoencoder: between pictures and what the flow works on; pixel space if left out.
    """

    def __init__(
        self, config: RunConfig, data: ImageSet, device: torch.device, autoencoder: Autoencoder | None = None
    ) -> None:
        self.autoencoder = autoencoder or Identity()
        network = fitted(config.network, self.autoencoder.latent_shape(data.shape)[0], len(data.class_names))
        config = config.model_copy(update={"network": network})
        self.config, self.data, self.device = config, data, device
        # A network without classes is an unconditional model, whatever labels the data have.
        self.class_names = data.class_names if network.classes else ()
        self.samples_per_step = config.batch
        self.density = time_density(config.times, config.flow.shift)
        self.loader = Loader(data.train, config.data, config.batch, config.steps, config.seed)
        torch.manual_seed(config.seed % 2**63)
        self.flow = Flow.build(build(network), config.flow).to(device)
        self.weight = LossWeight(config.weight, self.flow.schedule, self.density, config.flow.sigma_data)
        self.module = self.flow

    def loss(self, step: int, part: slice = slice(None)) -> Tensor:
        """Mean flow-matching loss over the batch of `step`, or the share of a part of it."""
        config, batch = self.config, torch.arange(self.config.batch)[part]
        # What a network draws by itself, such as dropout, it draws from torch's generator.
        torch.manual_seed(int(self._key("network", step).words(batch[:1], 1)))
        pixels, labels = (whole[part] for whole in self.loader(step))
        self.waited = self.loader.waited
        x = self._latents(pixels, self._key("dequantise", step), batch)
        z = self.flow.source.sample(self._key("noise", step), batch, x.shape[1:]).to(self.device)
        t = stratified(self.density, self._key("time", step), batch, config.batch)
        dropped = self._key("condition dropout", step).uniform(batch) < config.condition_dropout
        condition = self._condition(labels)
        condition = condition.drop(dropped.to(self.device)) if condition is not None else None
        return flow_matching_loss(self.flow, x, t, z, condition, self.weight).sum() / config.batch

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Mean loss of the first 1,024 held-out samples, each at its own fixed (t, z)."""
        assert isinstance(module, Flow)
        held_out, total = self.data.held_out, 0.0
        index = torch.arange(min(len(held_out), _HELD_OUT))
        if not len(index):
            return {}
        times = stratified(self.density, self._key("held-out time"), index, len(index))
        for part in torch.split(index, _CHUNK):
            x = self._latents(to_float(held_out.fetch(part)), self._key("held-out dequantise"), part)
            z = module.source.sample(self._key("held-out noise"), part, x.shape[1:]).to(self.device)
            condition = self._condition(held_out.labels[part])
            with torch.no_grad():
                total += float(flow_matching_loss(module, x, times[part], z, condition, self.weight).sum())
        return {"held_out_loss": total / len(index)}

    def preview(self, module: nn.Module) -> Image.Image:
        """A row of samples for each class, guided if the null condition is trained."""
        asked = self.config.preview
        request = Request(
            classes=self.class_names[: asked.rows],
            count=asked.count,
            steps=asked.steps,
            solver=asked.solver,
            guidance=asked.guidance if self.class_names and self.config.condition_dropout else 0.0,
        )
        pixels = to_uint8(self._pipeline(module, 0).sample(request).pixels)
        return grid(pixels, asked.count, screen_scale(*pixels.shape[1:3]))

    def save(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write the pipeline around `module`."""
        self._pipeline(module, step).save(folder)

    def _pipeline(self, module: nn.Module, step: int) -> Pipeline:
        assert isinstance(module, Flow)
        channels, height, width = self.data.shape
        return Pipeline(
            flow=module,
            flow_config=self.config.flow,
            network_config=self.config.network,
            shape=(channels, height, width),
            class_names=self.class_names,
            null_trained=bool(self.class_names) and self.config.condition_dropout > 0,
            autoencoder=self.autoencoder,
            training={"recipe": self.config.recipe, "step": step, "steps": self.config.steps},
        )

    def _condition(self, labels: Tensor) -> Condition | None:
        return Condition(labels.to(self.device)) if self.class_names else None

    def _latents(self, pixels: Tensor, key: Key, index: Tensor) -> Tensor:
        width = self.config.data.dequantise * 2 / (self.data.levels - 1)
        if width:
            pixels = pixels + (key.uniform(index, pixels.shape[1:]).float() - 0.5) * width
        return self.autoencoder.encode(pixels.to(self.device))

    def _key(self, purpose: str, step: int = 0) -> Key:
        return Key(self.config.seed, f"training {purpose}", step)
