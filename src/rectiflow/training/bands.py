"""Losses by noise level, and means of what steps observed."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BANDS = 5
SAMPLES = " samples"


def by_noise_level(losses: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The losses of samples whose time lies in each fifth of [0, 1]: their sum by a name, their number by another.

    The sums of all bands are that of the batch. `means` makes means of them, over however many parts and steps.

    Args:
        losses: of each sample, B.
        t: their times, float64 B; 0 is data, 1 is noise.
    """
    band = (t * BANDS).long().clamp(0, BANDS - 1)
    inside = torch.nn.functional.one_hot(band, BANDS).to(losses.device, torch.float32)
    names = [f"loss_t_{k / BANDS:.1f}-{(k + 1) / BANDS:.1f}" for k in range(BANDS)]
    sums, counts = losses.detach().float() @ inside, inside.sum(0)
    return dict(zip(names, sums, strict=True)) | dict(zip([n + SAMPLES for n in names], counts, strict=True))


def means(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each column of observations, without those that are NaN; nothing for a column without any.

    A column NAME beside another NAME + `SAMPLES` holds sums over so many samples: its mean is that over samples, so
    that a band of noise with few samples in a step, or none, counts by them.

    Args:
        columns: what each step saw, N by name.
    """
    found = {}
    for name, column in columns.items():
        count = columns.get(name + SAMPLES)
        value = float(column.nanmean() if count is None else column.nansum() / count.nansum())
        if not name.endswith(SAMPLES) and not math.isnan(value):
            found[name] = value
    return found
