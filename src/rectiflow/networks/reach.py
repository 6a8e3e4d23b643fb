"""Which tokens attend to which: all to all, or those of a clip in groups, and a caption's to everything."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rectiflow.networks.layers import Grid, attend

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, each B×heads×tokens×d
_FEW = 128  # tokens of a group, up to which a caption's keys are not repeated for each group


class Reach(NamedTuple):
    """What a token of a clip attends to in the clip.

    Args:
        grid: how the tokens lie.
        axis: "all"; "frame", the tokens of its frame; or "place", those of its place at all times.
    """

    grid: Grid
    axis: Literal["all", "frame", "place"] = "all"

    @property
    def groups(self) -> int:
        """In how many groups the tokens are."""
        return {"all": 1, "frame": self.grid.frames, "place": self.grid.height * self.grid.width}[self.axis]

    def split(self, x: Tensor) -> Tensor:
        """B×heads×tokens×d to B×heads×groups×n×d."""
        if self.axis == "place":
            return x.unflatten(2, (-1, self.groups)).transpose(2, 3)
        return x.unflatten(2, (self.groups, -1))

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        return (x.transpose(2, 3) if self.axis == "place" else x).flatten(2, 3)


def attention(of_x: Heads, reach: Reach | None = None) -> Tensor:
    """What tokens draw from those in their reach, B×heads×tokens×d; without `reach` from all."""
    if reach is None or reach.groups == 1:
        return attend(*of_x)
    query, key, value = (reach.split(part).flatten(1, 2) for part in of_x)  # each group as a head
    return reach.join(attend(query, key, value).unflatten(1, (-1, reach.groups)))


def joint_attention(of_x: Heads, of_y: Heads, mask: Tensor, reach: Reach | None = None) -> tuple[Tensor, Tensor]:
    """What a picture's tokens draw from those in their reach and from a caption's, and a caption's from all.

    Args:
        of_x: of N tokens of a picture or a clip.
        of_y: of L tokens of a caption; the queries may be fewer, or none.
        mask: bool B×L, true where there is a token, one at least in a row.
        reach: of the N tokens; None is all of them.

    Returns:
        B×heads×N×d, and B×heads×queries×d.
    """
    count = of_x[0].shape[-2]
    everything = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    query, key, value = (torch.cat(pair, dim=-2) for pair in zip(of_x, of_y, strict=True))
    if reach is None or reach.groups == 1:
        attended = attend(query, key, value, everything)
        return attended[..., :count, :], attended[..., count:, :]
    drawn = reach.join(_in_groups((reach.split(of_x[0]), reach.split(of_x[1]), reach.split(of_x[2])), of_y, mask))
    heard = of_y[0]
    return drawn, attend(heard, key, value, everything) if heard.shape[-2] else heard


def _in_groups(of_x: Heads, of_y: Heads, mask: Tensor) -> Tensor:
    """Attention within groups, B×heads×groups×n×d each, and to tokens that all groups see, B×heads×L×d."""
    (query, key, value), (_, told_key, told_value) = of_x, of_y
    groups, few = query.shape[2:4]
    if few > _FEW:
        keys, values = (
            torch.cat([near, far[:, :, None].expand(-1, -1, groups, -1, -1)], dim=-2).flatten(1, 2)
            for near, far in ((key, told_key), (value, told_value))
        )
        seen = torch.cat([mask.new_ones(len(mask), few), mask], dim=1)
        return attend(query.flatten(1, 2), keys, values, seen).unflatten(1, (-1, groups))
    query = query * query.shape[-1] ** -0.5
    near = query @ key.transpose(-1, -2)
    far = (query.flatten(2, 3) @ told_key.transpose(-1, -2)).masked_fill(~mask[:, None, None], -torch.inf)
    scores = torch.cat([near, far.unflatten(2, (groups, few))], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    of_near, of_far = weights.split([few, mask.shape[1]], dim=-1)
    return of_near @ value + (of_far.flatten(2, 3) @ told_value).unflatten(2, (groups, few))
