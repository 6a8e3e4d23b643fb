"""Pictures that tell how often they were read."""

import torch

from rectiflow.data.images import Images


class Read(Images):
    """Pictures in memory that are read at a cost: it counts how often each was."""

    costly = True

    def __init__(self, count=20, size=8):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
        self.labels, self.shape = torch.arange(count) % 4, (1, size, size)
        self.reads = torch.zeros(count, dtype=torch.int64)

    def fetch(self, index, place=None):
        self.reads[index] += 1
        return self.pixels[index] if place is None else 255 - self.pixels[index]

    def captions(self, index, choice=None):
        return [f"picture {row}" for row in index.tolist()]
