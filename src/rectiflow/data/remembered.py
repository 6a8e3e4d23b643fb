"""Pictures that are read once and then kept in memory."""

from typing import final

import torch
from torch import Tensor

from rectiflow.data.images import Images

MOST = 256 * 2**20  # bytes


@final
class Remembered(Images):
    """Pictures each of which is fetched from `images` once, and then kept as long as there is room.

    Crops other than the centre are fetched every time.

    Args:
        images: the pictures.
        most: bytes that may be kept, ≥ 0.
    """

    def __init__(self, images: Images, most: int = MOST) -> None:
        self.images, self.shape, self.labels = images, images.shape, images.labels
        self.prepared, self.captioned, self.room = images.prepared, images.captioned, most
        self._kept: dict[int, Tensor] = {}

    def fetch(self, index: Tensor, place: Tensor | None = None) -> Tensor:
        """The pictures at `index`."""
        if place is not None:
            return self.images.fetch(index, place)
        rows = torch.as_tensor(index).tolist()
        new = [row for row in dict.fromkeys(rows) if row not in self._kept]
        fetched = dict(zip(new, self.images.fetch(torch.tensor(new)), strict=True)) if new else {}
        for row, picture in fetched.items():
            if picture.nbytes <= self.room:
                self._kept[row] = picture.clone()  # not a view, which would keep the whole batch
                self.room -= picture.nbytes
        return torch.stack([self._kept[row] if row in self._kept else fetched[row] for row in rows])

    def captions(self, index: Tensor, choice: Tensor | None = None) -> list[str]:
        """The captions of the pictures at `index`."""
        return self.images.captions(index, choice)
