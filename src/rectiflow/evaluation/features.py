"""What pictures are compared by: their pixels, an encoder of the data's own, or a foreign one from a local folder."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.images import Images, to_float
from rectiflow.data.remembered import Remembered

_CHUNK = 256
_SCALED_BY = 2000


class Features(ABC):
    """A map from pictures to vectors. Subclasses are final.

    Attributes:
        name: for reports: two figures compare only if their features have one name.
    """

    name: str

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """Pictures in [−1, 1], N×C×H×W, to features, N×d float64."""

    def save(self, folder: Path) -> None:  # noqa: B027
        """Keep beside a report what is needed to repeat it."""


@final
class Pixels(Features):
    """The pixels themselves."""

    name = "pixels"

    def __call__(self, pixels: Tensor) -> Tensor:
        """N×(C·H·W)."""
        return pixels.flatten(1).double()


@final
class SmallEncoder(Features):
    """The last hidden features of a small classifier trained on the training pictures.

    Without classes it tells how a picture was turned: by quarters, or by half if it is not square.

    It is the same for every model of one set and seed, and is saved with the report.

    Args:
        images: training pictures, with labels ≥ 0 or −1 for none.
        steps: of training, batches of 128.
        seed: of weights and batches.
    """

    WIDTH = 64

    def __init__(self, images: Images, steps: int = 300, seed: int = 0) -> None:
        self.classes = int(images.labels.max()) + 1
        self.name = f"encoder of {self.WIDTH} features, {steps} steps, seed {seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _network(images.shape[0], self.WIDTH, max(self.classes, 4))
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=2e-3)
        images = Remembered(images) if images.costly else images
        for step in range(steps):
            index = _batch(len(images), step, seed)
            pixels, labels = to_float(images.fetch(index)), images.labels[index]
            if not self.classes:
                pixels, labels = _turned(pixels)
            loss = F.cross_entropy(self.network(pixels), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.network.eval().requires_grad_(False)
        index = _scaled_by(len(images), seed)
        found = self._hidden(to_float(images.fetch(index)))
        self.mean, self.std = found.mean(0), found.std(0).clamp_min(1e-6)

    def __call__(self, pixels: Tensor) -> Tensor:
        """N×64; of the training pictures, each of mean 0 and deviation 1."""
        return (self._hidden(pixels) - self.mean) / self.std

    def _hidden(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.network[:-1](part.float()) for part in torch.split(pixels, _CHUNK)]).double()

    @staticmethod
    def rows(count: int, steps: int, seed: int) -> Tensor:
        """Which of `count` training pictures are looked at, in their order, int64; most of them more than once."""
        return torch.cat([*(_batch(count, step, seed) for step in range(steps)), _scaled_by(count, seed)])

    def save(self, folder: Path) -> None:
        """`encoder.safetensors`."""
        scale = {"mean": self.mean, "std": self.std}
        save_file(dict(self.network.state_dict()) | scale, folder / "encoder.safetensors")


def _batch(count: int, step: int, seed: int) -> Tensor:
    return (Key(seed, "encoder batch", step).uniform(torch.arange(128)) * count).long()


def _scaled_by(count: int, seed: int) -> Tensor:
    return Key(seed, "encoder scale").permutation(count)[:_SCALED_BY]


@final
class LocalEncoder(Features):
    """The pooled features of an encoder that `transformers` loads: DINOv2, CLIP, or any other of pictures.

    Args:
        folder: a local folder; nothing is downloaded.

    Raises:
        InputError: no such folder, or `transformers` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(
                f"features '{folder}': expected pixels, encoder, or the local folder of one; nothing is downloaded."
            )
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise InputError("features from a folder need transformers: pip install transformers.") from error
        self.name, self.folder = folder.name, folder
        self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @property
    def reads(self) -> bool:
        """Whether it is a whole CLIP, which captions can be compared with."""
        return callable(getattr(self.model, "get_text_features", None))

    def __call__(self, pixels: Tensor) -> Tensor:
        """N×d."""
        found = []
        for part in torch.split(((pixels.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1), _CHUNK):
            given = self.processor(images=list(part), do_rescale=False, return_tensors="pt")
            with torch.no_grad():
                embed = getattr(self.model, "get_image_features", self.model)
                output = embed(**given)
                found.append(output if isinstance(output, Tensor) else output.pooler_output)
        return torch.cat(found).double()


def features(name: str, images: Images, seed: int = 0) -> Features:
    """The features of that name: "pixels", "encoder" (trained on `images`), or a local folder.

    Raises:
        InputError: it is none of them.
    """
    match name:
        case "pixels":
            return Pixels()
        case "encoder":
            return SmallEncoder(images, seed=seed)
    return LocalEncoder(Path(name))


def _network(channels: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, width),
        nn.SiLU(),
        nn.Linear(width, classes),
    )


def _turned(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """A part of the pictures turned by each angle, and which angle it was."""
    quarters = (0, 1, 2, 3) if pixels.shape[-1] == pixels.shape[-2] else (0, 2)
    parts = pixels.chunk(len(quarters))
    turned = [part.rot90(turn, (-2, -1)) for part, turn in zip(parts, quarters, strict=True)]
    return torch.cat(turned), torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
