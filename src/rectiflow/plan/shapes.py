"""Stages of a run that have shapes and no numbers: networks and data that take no memory, however large they are.

Their tensors are torch's fake ones: they lie on the meta device and say that they lie on the CPU, so that a stage's own
loss, its precision and its derivatives do with them just what they do in the run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import fitted as autoencoder_fitted
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.layers import NormSiLU
from rectiflow.base.condition import Text
from rectiflow.base.randomness import Key
from rectiflow.conditioning.config import TextConfig, TextRecord
from rectiflow.conditioning.text import TextEncoder
from rectiflow.data.images import Images, ImageSet
from rectiflow.models.autoencoder import load_autoencoder
from rectiflow.networks import layers, text, transformer, video
from rectiflow.networks.config import StatesInput, TextInput
from rectiflow.plan.clock import replaced
from rectiflow.training import autoencoder_stage, generators, stages
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import LatentConfig, RunConfig
from rectiflow.training.run import GENERATORS
from rectiflow.training.stage import Stage
from rectiflow.training.stages import Latents

CPU = torch.device("cpu")
_SAMPLES = 64  # that a set of shapes claims to have


@dataclass(frozen=True)
class Reads:
    """What a network is told of captions.

    Args:
        gives: by an encoder.
        length: tokens of the longest caption of a batch, as it is padded.
    """

    gives: TextInput
    length: int


@final
class ShapeImages(Images):
    """Pictures or clips that have a shape alone.

    Args:
        shape: of one of them.
        fake: where their tensors are made.
        prepared: whether they stand for latents.
    """

    def __init__(self, shape: tuple[int, ...], fake: FakeTensorMode, prepared: bool = False) -> None:
        self.shape, self.fake, self.prepared = shape, fake, prepared
        self.labels = torch.zeros(_SAMPLES, dtype=torch.int64)

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """As many."""
        with self.fake:
            return torch.empty(len(index), *self.shape)


@final
class ShapeText(TextEncoder):
    """An encoder whose captions have a length alone.

    Args:
        reads: what it gives.
        fake: where its tensors are made.
    """

    def __init__(self, reads: Reads, fake: FakeTensorMode) -> None:
        self.gives, self.length, self.fake = reads.gives, reads.length, fake

    def __call__(self, captions: Sequence[str]) -> Text:
        """As many, all of one length."""
        count, gives = len(captions), self.gives
        with self.fake:
            mask = torch.empty(count, self.length, dtype=torch.bool)
            if not isinstance(gives, StatesInput):
                return Text(torch.empty(count, self.length, dtype=torch.int64), mask)
            pooled = torch.empty(count, gives.pooled) if gives.pooled else None
            return Text(torch.empty(count, self.length, gives.features), mask, pooled)

    def save(self, folder: Path, number: int) -> tuple[TextRecord, dict[str, str]]:
        """Never: nothing of this is kept."""
        raise AssertionError("an encoder of shapes has nothing to save")


@dataclass(frozen=True)
class Shaped:
    """What the stages of a run are built of.

    Args:
        shape: of its pictures or clips.
        class_names: name of each label.
        reads: what reads their captions.
        fake: where tensors without numbers are made.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    reads: tuple[Reads, ...] = ()
    fake: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    def stage(self, config: TrainingConfig, space: LatentSpace | None) -> Stage:
        """A stage of the run, while `hollow` lasts.

        Args:
            config: its settings, with the batch that it is to take.
            space: the autoencoder, if it is in latents.
        """
        picture = config.picture if isinstance(config, RunConfig) else None
        data = self._set(self.shape, paired=picture is not None and picture.kind == "paired")
        if isinstance(config, AutoencoderRunConfig):
            return AutoencoderStage(config.model_copy(update={"start_from": ""}), data, CPU)
        assert isinstance(config, RunConfig)
        latents = None if space is None else Latents(space, self._set(moments_shape(space, self.shape), prepared=True))
        made = GENERATORS[config.objective](config, data, CPU, latents)
        if config.data.source_dir:
            made.bridge_from(data)
        return made

    def _set(self, shape: tuple[int, ...], prepared: bool = False, paired: bool = False) -> ImageSet:
        part = ShapeImages(shape, self.fake, prepared)
        part.paired = ShapeImages(shape, self.fake) if paired else None
        return ImageSet(part, part, self.class_names)

    def space(self, latent: LatentConfig) -> LatentSpace:
        """The autoencoder of a run of latents, while `hollow` lasts."""
        if latent.autoencoder:
            network = load_autoencoder(latent.autoencoder).network.config
        else:
            network = autoencoder_fitted(latent.train.network, self.shape[0])
        return LatentSpace(_hollow(build_autoencoder, self.fake)(network))


def moments_shape(space: LatentSpace, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of what is kept of the latents of a picture, or of a clip: that has its last frame by itself besides."""
    channels, *rest = space.latent_shape(shape)
    if len(shape) == 4 and shape[1] > 1:
        rest[0] += 1
    return (2 * channels, *rest)


def _hollow(make: Callable[..., nn.Module], fake: FakeTensorMode) -> Callable[..., Any]:
    """What builds the same network without numbers."""

    def made(*settings: object) -> nn.Module:
        with fake:
            module = make(*settings)
        # What has no numbers lies on every device and in every format alike.
        vars(module)["_apply"] = lambda *asked: module
        return module

    return made


def _table(make: Callable[..., Any], fake: FakeTensorMode) -> Callable[..., Any]:
    """What makes the same table of places without numbers, and does not keep it."""

    def made(*about: object) -> Any:
        with fake:
            return make.__wrapped__(*about)  # type: ignore[attr-defined]

    return made


@contextmanager
def hollow(shaped: Shaped, gpu: bool) -> Iterator[None]:
    """While this lasts, stages are built of shapes, and can be asked for their losses.

    For a process in which nothing else is built meanwhile.

    Args:
        shaped: what of.
        gpu: whether they do what they do on a GPU, else what they do on a CPU.
    """
    fake = shaped.fake

    def encoders(config: TextConfig, captions: Sequence[str], device: object) -> tuple[TextEncoder, ...]:
        return tuple(ShapeText(each, fake) for each in shaped.reads)

    def normal(key: Key, index: Tensor, shape: Sequence[int] = ()) -> Tensor:
        with fake:
            return torch.empty(len(index), *shape)

    made = [(stages, "build"), (generators, "build"), (autoencoder_stage, "build_autoencoder")]
    made += [(autoencoder_stage, "Discriminator"), (autoencoder_stage, "VideoDiscriminator")]
    tables = [(transformer, "grid_embedding"), (transformer, "axial_rotation"), (video, "space_time_rotation")]
    tables += [(text, "line_rotation")]
    others: list[tuple[Any, str, object]] = [
        (stages, "encoders", encoders),
        (stages, "with_pairs", lambda data, *others: data),
        (Key, "normal", normal),
        (AutoencoderStage, "_begin_from_linear_code", lambda stage, code: None),
    ]
    if gpu:
        others += [
            (layers, "_FEW_TOKENS", 0),
            (nn.GroupNorm, "forward", _group_norm),
            (NormSiLU, "forward", _norm_silu),
        ]
    with ExitStack() as stack:
        for owner, name in made:
            stack.enter_context(replaced(owner, name, _hollow(getattr(owner, name), fake)))
        for owner, name in tables:
            stack.enter_context(replaced(owner, name, _table(getattr(owner, name), fake)))
        for owner, name, value in others:
            stack.enter_context(replaced(owner, name, value))
        yield


def _group_norm(norm: nn.GroupNorm, input: Tensor) -> Tensor:
    """In float32 under autocast, as CUDA has it and a CPU has not."""
    input = input.float() if torch.is_autocast_enabled("cpu") else input
    return F.group_norm(input, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _norm_silu(norm: NormSiLU, input: Tensor) -> Tensor:
    return F.silu(_group_norm(norm, input))
