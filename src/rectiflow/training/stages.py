"""What one kind of training optimises."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor, nn

from rectiflow.autoencoders.autoencoder import Autoencoder, Identity
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.builtin import ImageSet
from rectiflow.data.loader import batch_indices
from rectiflow.data.pictures import grid, screen_scale, to_uint8
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.flow.times import shift, stratified, time_density
from rectiflow.networks.dit import build
from rectiflow.pipeline import Pipeline, Request
from rectiflow.training.config import RunConfig

_CHUNK = 256
_PREVIEW_COUNT = 8


class Stage(ABC):
    """A module, its loss, and what a run wants to know and keep of it. All of it is a function of the step.

    Attributes:
        module: what is trained.
        samples_per_step: training samples that a step takes.
    """

    module: nn.Module
    samples_per_step: int

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
        config: the run.
        data: what to train on.
        device: where to train.
        autoencoder: between pictures and what the flow works on; pixel space if left out.
    """

    def __init__(
        self, config: RunConfig, data: ImageSet, device: torch.device, autoencoder: Autoencoder | None = None
    ) -> None:
        self.config, self.data, self.device = config, data, device
        # A network without classes is an unconditional model, whatever labels the data have.
        self.class_names = data.class_names if config.network.classes else ()
        for name, asked, there in (
            ("channels", config.network.channels, data.shape[0]),
            ("classes", config.network.classes, len(self.class_names)),
        ):
            if asked != there:
                raise InputError(f"network.{name} is {asked}, but the data have {there}; set network.{name}={there}.")
        self.autoencoder = autoencoder or Identity()
        self.samples_per_step = config.batch
        self.density = time_density(config.times)
        torch.manual_seed(config.seed % 2**63)
        self.flow = Flow.build(build(config.network), config.flow).to(device)
        self.module = self.flow

    def loss(self, step: int, part: slice = slice(None)) -> Tensor:
        """Mean flow-matching loss over the batch of `step`, or the share of a part of it."""
        config, batch = self.config, torch.arange(self.config.batch)[part]
        chosen = batch_indices(step, config.batch, len(self.data.train), config.seed)[part]
        x = self._latents(self.data.train.pixels[chosen], self._key("dequantise", step), batch)
        z = self.flow.source.sample(self._key("noise", step), batch, x.shape[1:]).to(self.device)
        t = shift(stratified(self.density, self._key("time", step), batch, config.batch), config.flow.shift)
        dropped = self._key("condition dropout", step).uniform(batch) < config.condition_dropout
        condition = self._condition(self.data.train.labels[chosen])
        condition = condition.drop(dropped.to(self.device)) if condition is not None else None
        return flow_matching_loss(self.flow, x, t, z, condition).sum() / config.batch

    def held_out(self, module: nn.Module) -> dict[str, float]:
        """Mean loss of the held-out samples, each at its own fixed (t, z)."""
        assert isinstance(module, Flow)
        held_out, total = self.data.held_out, 0.0
        index = torch.arange(len(held_out))
        times = shift(stratified(self.density, self._key("held-out time"), index, len(index)), self.config.flow.shift)
        for part in torch.split(index, _CHUNK):
            x = self._latents(held_out.pixels[part], self._key("held-out dequantise"), part)
            z = module.source.sample(self._key("held-out noise"), part, x.shape[1:]).to(self.device)
            condition = self._condition(held_out.labels[part])
            with torch.no_grad():
                total += float(flow_matching_loss(module, x, times[part], z, condition).sum())
        return {"held_out_loss": total / len(held_out)}

    def preview(self, module: nn.Module) -> Image.Image:
        """A row of samples for each class, guided if the null condition is trained."""
        guidance = 1.0 if self.class_names and self.config.condition_dropout else 0.0
        samples = self._pipeline(module, 0).sample(Request(count=_PREVIEW_COUNT, guidance=guidance))
        pixels = to_uint8(samples.pixels)
        return grid(pixels, _PREVIEW_COUNT, screen_scale(*pixels.shape[1:3]))

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
