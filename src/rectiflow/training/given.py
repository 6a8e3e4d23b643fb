"""What a model in training is given beside the noise: nothing, a picture, or frames of a clip."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.randomness import Key
from rectiflow.conditioning.frames import Given, told
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.conditioning.picture import degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.images import Images, ImageSet, to_float
from rectiflow.data.paired import given_of


class Taken(NamedTuple):
    """A part of a batch.

    Args:
        pixels: B×C×H×W or B×C×T×H×W, or moments of latents, as they come from the set.
        latents: what the flow is trained on.
        last: latents of the last frame of each clip, encoded by itself, B×C′×1×h×w; None of pictures.
        rows: int64 B, of the set.
    """

    pixels: Tensor
    latents: Tensor
    last: Tensor | None
    rows: Tensor


class Giver(ABC):
    """Gives; all of it a function of the run's seed and the step. Subclasses are final."""

    @abstractmethod
    def image(self, taken: Taken, step: int, index: Tensor) -> Tensor | None:
        """`Condition.image` of samples at the places `index` of the batch of `step`; None if nothing is given."""

    @abstractmethod
    def held_out_image(self, images: Images, taken: Taken) -> Tensor | None:
        """The same of held-out samples, the same every time."""

    @abstractmethod
    def dropped(self, condition: Condition, step: int, index: Tensor) -> Condition:
        """`condition` with what is given taken from some, and all the rest from others."""

    def shown(self, images: Images, count: int) -> Tensor | None:
        """`Request.picture` for previews, of the first `count` of these; None for a model that needs none."""
        return None


@final
class Nothing(Giver):
    """No model is given anything."""

    def image(self, taken: Taken, step: int, index: Tensor) -> None:
        """None."""

    def held_out_image(self, images: Images, taken: Taken) -> None:
        """None."""

    def dropped(self, condition: Condition, step: int, index: Tensor) -> Condition:
        """The same."""
        return condition


@final
@dataclass(frozen=True)
class APicture(Giver):
    """A degraded or a paired picture.

    Args:
        config: which.
        data: the pictures, with their pairs.
        seed: of the run.
    """

    config: PictureConfig
    data: ImageSet
    seed: int

    def image(self, taken: Taken, step: int, index: Tensor) -> Tensor:
        """What is given of the pictures."""
        kind = degradation(self.config)
        if self.data.train.paired is not None:
            return kind.told(to_float(self.data.train.paired.fetch(taken.rows)))
        return kind.told(kind.given(taken.pixels, _key(self.seed, "picture", step), index))

    def held_out_image(self, images: Images, taken: Taken) -> Tensor:
        """The same of held-out pictures."""
        key = _key(self.seed, "held-out picture")
        return degradation(self.config).told(given_of(self.config, images, taken.rows, key))

    def dropped(self, condition: Condition, step: int, index: Tensor) -> Condition:
        """Some of the pictures replaced by nothing, and some of all the rest."""
        condition = _alone(condition, self.config.alone, _key(self.seed, "picture alone", step), index)
        without = _key(self.seed, "picture dropout", step).uniform(index) < self.config.dropout
        return condition.drop_image(without.to(condition.labels.device))

    def shown(self, images: Images, count: int) -> Tensor:
        """What is given of the first ones."""
        rows = torch.arange(min(count, len(images)))
        return given_of(self.config, images, rows, _key(self.seed, "held-out picture"))


@final
@dataclass(frozen=True)
class Frames(Giver):
    """Frames of a clip.

    Args:
        config: how often which.
        seed: of the run.
    """

    config: FramesConfig
    seed: int

    def image(self, taken: Taken, step: int, index: Tensor) -> Tensor | None:
        """Clean latents and their mask, or nothing of stills."""
        return self._told(taken, _key(self.seed, "frames", step), index)

    def held_out_image(self, images: Images, taken: Taken) -> Tensor | None:
        """The same of held-out clips."""
        return self._told(taken, _key(self.seed, "held-out frames"), taken.rows)

    def _told(self, taken: Taken, key: Key, index: Tensor) -> Tensor | None:
        length = taken.latents.shape[2]
        if length == 1 or taken.last is None:
            return None
        return told(taken.latents, taken.last, Given.drawn(self.config, key, index, length))

    def dropped(self, condition: Condition, step: int, index: Tensor) -> Condition:
        """Labels and captions taken from some; what is given has been drawn with `FramesConfig.nothing` in it."""
        if condition.image is None:
            return condition
        return _alone(condition, self.config.alone, _key(self.seed, "frames alone", step), index)


def _alone(condition: Condition, share: float, key: Key, index: Tensor) -> Condition:
    alone = (key.uniform(index) < share).to(condition.labels.device)
    return replace(condition.drop(alone), image=condition.image)


def _key(seed: int, purpose: str, step: int = 0) -> Key:
    return Key(seed, f"training {purpose}", step)
