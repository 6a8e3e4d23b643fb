"""What a plan from shapes knows of a run's data: as they are, or as they are assumed to be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rectiflow.base.errors import InputError
from rectiflow.conditioning.config import FrozenConfig, LearnedConfig, TextConfig
from rectiflow.conditioning.encoder_files import encoder_folder
from rectiflow.conditioning.encoders import encoders
from rectiflow.conditioning.frozen import Frozen
from rectiflow.conditioning.text import TextEncoder, padded_length
from rectiflow.data.config import BUILTIN
from rectiflow.data.images import ImageSet
from rectiflow.data.sets import open_set
from rectiflow.networks.config import TokensInput
from rectiflow.plan.shapes import CPU, Reads
from rectiflow.training import stages
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import RunConfig


@dataclass(frozen=True)
class Seen:
    """A run's data.

    Args:
        shape: C, H, W of a picture, or C, T, H, W of a clip.
        class_names: name of each label.
        reads: what reads the captions.
        train: samples to train on; None if nobody looked.
        held_out: samples held out; None likewise.
        assumed: what was taken to be so, a line each.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    reads: tuple[Reads, ...]
    train: int | None = None
    held_out: int | None = None
    assumed: tuple[str, ...] = ()


def seen(config: TrainingConfig, look: bool = True) -> Seen:
    """What is known of the data of a run.

    Args:
        config: the run.
        look: whether to look at files; a set that is built in is always looked at.

    Raises:
        InputError: what the run would refuse; or there is nothing to look at, and no size to assume.
    """
    asked = config.data
    text = config.text if isinstance(config, RunConfig) else None
    if asked.set in BUILTIN or (look and (asked.dir or asked.shards)):
        data = open_set(asked.model_copy(update={"check": "header"}))
        reads = () if text is None else _read(text, data, config.batch)
        return Seen(data.shape, data.class_names, reads, len(data.train), len(data.held_out))
    if asked.size is None:
        raise InputError("there are no pictures to look at, and no data.size; give --data DIR, or --set data.size=64.")
    channels, classes = 1 if asked.colour == "grey" else 3, 0
    if isinstance(config, RunConfig):
        channels = channels if config.latent is not None else config.network.channels or channels
        classes = config.network.classes or 0
    shape = (channels, *([asked.frames] if asked.frames > 1 else []), *asked.height_width)
    what = f"{'clips' if asked.frames > 1 else 'pictures'} of {'×'.join(map(str, shape))}, {classes or 'no'} classes"
    told = [f"no data were looked at: assumed {what}; the number of samples is not known."]
    if text is not None:
        told.append("captions are taken to be as long as the encoders read them at most.")
    reads = () if text is None else tuple(_longest(each) for each in text.encoders)
    return Seen(shape, tuple(map(str, range(classes))), reads, assumed=tuple(told))


def _read(config: TextConfig, data: ImageSet, batch: int) -> tuple[Reads, ...]:
    """As long as the first captions, as many as a batch has."""
    made = encoders(config, stages._captions(data.train), CPU)
    first = data.train.captions(torch.arange(min(batch, len(data.train))))
    return tuple(Reads(each.gives, _length(each, first)) for each in made)


def _length(encoder: TextEncoder, captions: Sequence[str]) -> int:
    if isinstance(encoder, Frozen):
        return padded_length(max(map(len, encoder._ids(captions))))
    return encoder(captions).mask.shape[1]


def _longest(config: LearnedConfig | FrozenConfig) -> Reads:
    if isinstance(config, FrozenConfig):
        encoder = Frozen(config, encoder_folder(config.name), CPU)
        return Reads(encoder.gives, padded_length(encoder.length))
    gives = TokensInput(vocabulary=config.vocabulary, width=config.width, depth=config.depth)
    return Reads(gives, padded_length(config.length))
