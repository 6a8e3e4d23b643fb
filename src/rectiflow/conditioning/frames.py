"""Frames of a clip as a condition: which are given in training, and how a network is told of them.

Latents of a clip are B×C′×L×h×w, the first of the L those of the first frame alone, for the autoencoder is causal. So
the latents of a clip's beginning are the beginning of its latents. Its last frame is encoded by itself, as a picture,
and told in the last place: with what comes before it would tell of frames that are not given.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.conditioning.frames_config import FramesConfig


class Given(NamedTuple):
    """How much is given of B clips.

    Args:
        beginning: int64 B, latent frames from the first on; 0 is none.
        end: bool B, whether the last frame is.
    """

    beginning: Tensor
    end: Tensor

    @classmethod
    def drawn(cls, config: FramesConfig, key: Key, index: Tensor, length: int) -> "Given":
        """What training gives of the samples at global `index` (int64 B), of clips of `length` = L latent frames."""
        draws = key.uniform(index, (2,)).double()
        weights = torch.tensor(config.weights, dtype=torch.float64)
        kind = torch.searchsorted(weights.cumsum(0) / weights.sum(), draws[:, 0].contiguous(), right=True)
        several = 2 + (draws[:, 1] * max(length - 2, 1)).long()
        one = ((kind == 1) | (kind == 3)).long()
        beginning = torch.where(kind == 4, several, one).clamp(max=length - 1)
        return cls(beginning, ((kind == 2) | (kind == 3)) & (length > 1))


def told(latents: Tensor, last: Tensor, given: Given) -> Tensor:
    """`Condition.image` of clips: B×(C′+1)×L×h×w, clean latents and then the mask, zero where nothing is given.

    Args:
        latents: B×C′×L×h×w of the clips, whatever where they are not given.
        last: B×C′×1×h×w of their last frames, each encoded by itself.
        given: how much of them to tell.
    """
    place = torch.arange(latents.shape[2], device=latents.device)
    begins = (place < given.beginning.to(place)[:, None])[:, None, :, None, None]
    ends = given.end.to(place.device)[:, None] & (place == place[-1])
    ends = ends[:, None, :, None, None]
    seen = torch.where(ends, last, torch.where(begins, latents, 0.0))
    mask = (begins | ends).to(latents.dtype).expand(-1, 1, -1, *latents.shape[3:])
    return torch.cat([seen, mask], dim=1)


def given_frames(first: Tensor | None, last: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """`told` of the frames that a user gives of clips.

    Args:
        first: B×C′×l×h×w, latents of the frames that the clips begin with; None if there are none.
        last: B×C′×1×h×w, of their last frames, encoded by themselves; None if there are none.
        shape: B×C′×L×h×w, of the clips' latents.
    """
    latents, begins = torch.zeros(shape), 0
    if first is not None:
        begins = first.shape[2]
        latents[:, :, :begins] = first
    ends = torch.full(shape[:1], last is not None)
    return told(latents, latents[:, :, :1] if last is None else last, Given(torch.full(shape[:1], begins), ends))


def put_back(latents: Tensor, image: Tensor) -> Tensor:
    """`latents` with the beginning that `image` (as of `told`) gives; the last frame's place also holds others."""
    mask, length = image[:, -1:], latents.shape[2]
    beginning = mask[:, :, : length - 1].cumprod(2) if length > 1 else mask[:, :, :0]
    kept = torch.cat([beginning, torch.zeros_like(mask[:, :, length - 1 :])], dim=2)
    return torch.where(kept > 0, image[:, :-1].to(latents.dtype), latents)
