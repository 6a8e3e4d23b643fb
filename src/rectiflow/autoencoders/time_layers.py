"""Causal layers along time, of frames that lie folded in the batch.

Frames are (B·T)×C×H×W with the channels last in memory, which is B×C×T×HW with the channels last too: a convolution
along time is a 2-D one of kernel k×1, and nothing is copied but the frames before the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectiflow.autoencoders.config import AutoencoderConfig


@dataclass(frozen=True)
class Memory:
    """What causal layers keep of the frames that a clip's chunks so far have shown them: as little as the next need.

    One of them serves one clip's pass through one network; empty before the first chunk.

    Args:
        kept: for each layer its last frames, B×C×n×HW.
    """

    kept: dict[nn.Module, Tensor] = field(default_factory=dict)

    def begun(self, layer: nn.Module) -> bool:
        """Whether a layer has seen a chunk."""
        return layer in self.kept


class TimeConv(nn.Module):
    """A convolution along time whose frame j sees frames s·j−k+1 … s·j, zeros before the first; one pixel wide.

    Args:
        channels: C of the input.
        after: C′ of the output.
        kernel: k, frames that it sees.
        stride: s; 1+s·n frames give 1+n.
    """

    def __init__(self, channels: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(after, channels, kernel, 1))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, frames: Tensor, batch: int, memory: Memory | None = None) -> Tensor:
        """(B·T)×C×H×W to (B·T′)×C′×H×W.

        Args:
            frames: of B clips, or of a chunk of each.
            batch: B.
            memory: of the chunks before, which this one is put into; None where `frames` are all there are.
        """
        kernel, height = self.weight.shape[2], frames.shape[2]
        if memory is None and len(frames) == batch:  # a frame alone needs the last tap alone
            return F.conv2d(frames, self.weight[:, :, -1:], self.bias)
        x = _along_time(frames, batch)
        if memory is None or not memory.begun(self):
            past = x.new_zeros(batch, kernel - 1, x.shape[3], x.shape[1]).permute(0, 3, 1, 2)
        else:
            past = memory.kept[self]
        x = torch.cat([past, x], dim=2)
        if memory is not None:
            memory.kept[self] = x[:, :, x.shape[2] - (kernel - self.stride) :].clone()
        return _as_frames(F.conv2d(x, self.weight, self.bias, stride=(self.stride, 1)), height)


class TimeGrow(nn.Module):
    """Frame 0 to one frame, each later one to two, of which each sees its source and the frame before that.

    Args:
        channels: C, of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TimeConv(channels, 2 * channels, 2)  # the former of the two, then the latter
        with torch.no_grad():
            self.conv.weight[:, :, -1, 0] = torch.eye(channels).repeat(2, 1)

    def forward(self, frames: Tensor, batch: int, memory: Memory | None = None) -> Tensor:
        """(B·T)×C×H×W to (B·(2T−1))×C×H×W, or to (B·2T)×C×H×W of a chunk that is not the first."""
        first = memory is None or not memory.begun(self.conv)
        both = self.conv(frames, batch, memory).permute(0, 2, 3, 1)  # (B·T)×H×W×2C
        pairs = both.unflatten(3, (2, -1)).unflatten(0, (batch, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        return (pairs[:, 1:] if first else pairs).flatten(0, 1).permute(0, 3, 1, 2)


class TimeLayers(nn.Module):
    """The layers along time of an encoder or a decoder of pictures.

    Args:
        mixed: channels after each residual block, and last those of the middle.
        scaled: the layers beside those that change the side; Identity where time stays as it is.
    """

    def __init__(self, mixed: Sequence[int], scaled: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mix = nn.ModuleList(TimeConv(channels, channels, 3) for channels in mixed)
        self.scale = nn.ModuleList(scaled)

    @classmethod
    def of_encoder(cls, config: AutoencoderConfig) -> "TimeLayers":
        """Time is halved beside the last log₂(temporal) shrinks, whose current frame is taken at first."""
        widths = config.widths
        scaled: list[nn.Module] = [nn.Identity() for _ in widths[1:]]
        for level in range(len(scaled) - _halvings(config), len(scaled)):
            shrink = TimeConv(widths[level], widths[level], 3, stride=2)
            with torch.no_grad():
                shrink.weight[:, :, -1, 0] = torch.eye(widths[level])
            scaled[level] = shrink
        return cls([width for width in widths for _ in range(config.blocks)] + [widths[-1]], scaled)

    @classmethod
    def of_decoder(cls, config: AutoencoderConfig) -> "TimeLayers":
        """Time is doubled beside the first log₂(temporal) growths, by repeating at first."""
        widths = config.widths[::-1]
        doubled = _halvings(config)
        scaled = [TimeGrow(width) if level < doubled else nn.Identity() for level, width in enumerate(widths[:-1])]
        return cls([width for width in widths for _ in range(config.blocks + 1)] + [widths[0]], scaled)


@dataclass(frozen=True)
class Passage:
    """Layers along time as the 2-D network calls them between its own (`Between`).

    Args:
        layers: of this half.
        batch: B, clips in the batch.
        memory: as of `TimeConv`.
    """

    layers: TimeLayers
    batch: int
    memory: Memory | None = None

    def mix(self, frames: Tensor, block: int) -> Tensor:
        """After residual block number `block`, or −1 for the middle."""
        out: Tensor = frames + self.layers.mix[block](frames, self.batch, self.memory)
        return out

    def scale(self, frames: Tensor, level: int) -> Tensor:
        """After the shrink or growth number `level`."""
        layer = self.layers.scale[level]
        return frames if isinstance(layer, nn.Identity) else layer(frames, self.batch, self.memory)


def _halvings(config: AutoencoderConfig) -> int:
    return config.temporal.bit_length() - 1


def _along_time(frames: Tensor, batch: int) -> Tensor:
    """(B·T)×C×H×W to B×C×T×HW, the channels last in memory."""
    pixels = frames.permute(0, 2, 3, 1).contiguous()
    return pixels.reshape(batch, len(frames) // batch, -1, pixels.shape[-1]).permute(0, 3, 1, 2)


def _as_frames(x: Tensor, height: int) -> Tensor:
    """B×C×T×HW to (B·T)×C×H×W, the channels last in memory."""
    pixels = x.permute(0, 2, 3, 1).contiguous().flatten(0, 1)
    return pixels.unflatten(1, (height, -1)).permute(0, 3, 1, 2)
