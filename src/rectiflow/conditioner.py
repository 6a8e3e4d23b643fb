"""Floor 4: what a model is told, out of what its user asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from rectiflow.base.condition import NULL_LABEL, Condition
from rectiflow.base.errors import InputError
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.conditioning.labels import Labels
from rectiflow.conditioning.picture import Degradation, degradation
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.conditioning.text import TextEncoder
from rectiflow.request import Request


@final
@dataclass(frozen=True)
class Conditioner:
    """Makes conditions of classes, prompts, and pictures or frames that are given.

    Args:
        class_names: name of each label; empty for a model without classes.
        encoders: what reads prompts; empty for a model that takes none.
        picture: the picture that it is given; None for a model that is given none.
        frames: the frames that it may be given, for a model of clips; None for one that is given none.
        null_trained: whether the model was trained with condition dropout, which guidance needs.
    """

    class_names: tuple[str, ...] = ()
    encoders: tuple[TextEncoder, ...] = ()
    picture: PictureConfig | None = None
    frames: FramesConfig | None = None
    null_trained: bool = False

    @property
    def takes_prompts(self) -> bool:
        """Whether pictures are asked for by sentences."""
        return bool(self.encoders)

    @property
    def told_more(self) -> bool:
        """Whether it is told classes or prompts, be it beside a picture or alone."""
        return bool(self.class_names or self.encoders)

    @property
    def takes_image(self) -> bool:
        """Whether it is given pictures or frames."""
        return self.picture is not None or self.frames is not None

    @property
    def degradation(self) -> Degradation:
        """What is given of a picture, for a model that is given one."""
        assert self.picture is not None
        return degradation(self.picture)

    def prompts(self, request: Request) -> tuple[str, ...]:
        """Prompt of each picture of a request; empty ones for a model that takes none."""
        if not self.takes_prompts:
            return ("",) * len(self.labels(request))
        return tuple(prompt for prompt in request.prompts for _ in range(request.count))

    def condition(self, labels: Tensor, captions: Sequence[str], image: Tensor | None = None) -> Condition | None:
        """What the flow is told of B samples; None if it is told nothing.

        Args:
            labels: int64 B; they say nothing to a model without classes.
            captions: B of them, likewise.
            image: as for `Condition`.
        """
        if not self.told_more and not self.takes_image:
            return None
        labels = labels if self.class_names else torch.full_like(labels, NULL_LABEL)
        return Condition(labels, tuple(encoder(captions) for encoder in self.encoders), image)

    def asked(self, request: Request, index: Tensor, image: Tensor | None) -> Condition | None:
        """What the flow is told of the pictures at `index` (int64 B) of a request; `image` as for `condition`."""
        labels, prompts = self.labels(request)[index], self.prompts(request)
        condition = self.condition(labels, [prompts[i] for i in index.tolist()], image)
        if condition is None:
            return None
        negative = self.condition(labels, [request.negative] * len(index), image) if request.negative else None
        return request.led_away(condition, negative, self.keeps_image(request))

    def keeps_image(self, request: Request) -> bool:
        """Whether guidance leads away from the same picture or frames, and not from nothing."""
        asked = self.picture or self.frames
        if asked is None or request.null == "nothing" or not request.gives:
            return False
        return request.null == "picture" or (self.told_more and asked.alone > 0)

    def labels(self, request: Request) -> Tensor:
        """Label of each picture of a request, int64; −1 without classes.

        Raises:
            InputError: it asks for what the model does not know; one line.
        """
        self._check(request)
        if self.takes_prompts:
            return torch.full((len(request.prompts) * request.count,), NULL_LABEL)
        if not self.class_names:
            return torch.full((request.count,), NULL_LABEL)
        return Labels(self.class_names)(request.classes or self.class_names).labels.repeat_interleave(request.count)

    def _check(self, request: Request) -> None:
        if request.count < 1:
            raise InputError(f"count must be at least 1, received {request.count}.")
        by_null = request.guidance and request.guidance_kind.partition(":")[0] != "auto"
        request.check_prompts()
        if request.prompts and not self.takes_prompts:
            raise InputError("this model takes no prompts; ask for its classes, or leave the prompts out.")
        if request.negative and not (self.takes_prompts and by_null):
            raise InputError("a negative prompt needs a model that takes prompts, and guidance greater than 0.")
        if self.takes_prompts and (request.classes or not request.prompts):
            raise InputError("this model takes prompts, one at least, and knows no classes.")
        if not self.told_more and (request.classes or (by_null and not self.takes_image)):
            raise InputError("this model is unconditional: it knows no classes and no guidance; leave both out.")
        if by_null and not (self.keeps_image(request) or self.null_trained):
            raise InputError("this model was trained without condition dropout, so it has no guidance; use 0.")
        self._check_given(request)

    def _check_given(self, request: Request) -> None:
        if self.picture is None and request.picture is not None:
            raise InputError("this model is given no picture beside the noise; leave the picture out.")
        if self.frames is None and (request.first is not None or request.last is not None):
            raise InputError("this model is given no frames beside the noise; leave the first and the last one out.")
        asked = self.picture or self.frames
        if asked is None:
            if request.null != "auto":
                raise InputError("this model is given no picture beside the noise; leave null out.")
            return
        picture = self.picture
        if (
            picture is not None
            and request.picture is None
            and not (picture.dropout or (self.null_trained and not self.told_more))
        ):
            raise InputError(
                f"this model needs a picture (kind {picture.kind}), for it was trained with picture.dropout=0; "
                "give one: --picture FILE."
            )
        if request.null == "picture" and not (self.told_more and asked.alone):
            raise InputError(
                "guidance away from the same picture needs labels or texts, and a share of training with the picture "
                "alone; use --null nothing."
            )

    def same_kind(self, other: "Conditioner") -> bool:
        """Whether both take prompts, or neither, and the same pictures, so that one may guide the other."""
        mine, theirs = (replace(each, encoders=(), class_names=(), null_trained=False) for each in (self, other))
        return mine == theirs and self.takes_prompts == other.takes_prompts
