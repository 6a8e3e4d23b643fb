"""LPIPS: how different two pictures look, by the features of VGG16 (Zhang et al. 2018)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rectiflow.base.errors import InputError
from rectiflow.hub import is_hub_name

_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = (2, 2, 3, 3, 3)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_LEAST_SIDE = 16
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
# torchvision's names; lpips and taming-transformers keep its numbers under net.sliceK.
_CONVOLUTION = re.compile(r"(?:.*\.)?(?:features|slice\d)\.(\d+)\.(weight|bias)")
_LINEAR = re.compile(r"(?:.*\.)?lin(\d)\.model\.\d\.weight")


class LPIPS(nn.Module):
    """Σ over five taps of mean over positions ⟨w, (f̂(a) − f̂(b))²⟩, with f̂ the features of unit length over channels.

    The taps are VGG16 after relu1_2, 2_2, 3_3, 4_3 and 5_3, of pictures (x − shift) / scale per channel. It is frozen:
    no weight asks for a gradient, and gradients flow to the pictures. Under autocast the convolutions follow it;
    features are compared in float32.

    Args:
        widths: channels of the five stages; VGG16's own unless told.

    Raises:
        InputError: not five stages.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        if len(widths) != len(_DEPTHS):
            raise InputError(f"VGG16 has five stages, received {len(widths)} widths.")
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        before = 3
        for width, depth in zip(widths, _DEPTHS, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)  # numbered as torchvision does
        self.linear = nn.ParameterList(torch.full((width,), 1 / width) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances B ≥ 0 of pictures B×C×H×W in [−1, 1], C = 1 (repeated) or 3; 0 for equal ones.

        Raises:
            InputError: shapes that differ, other channels, or a side under 16.
        """
        if a.dim() != 4 or a.shape != b.shape or a.shape[1] not in (1, 3) or min(a.shape[-2:]) < _LEAST_SIDE:
            raise InputError(
                f"LPIPS compares pictures B×C×H×W of 1 or 3 channels and sides of at least {_LEAST_SIDE}; received "
                f"{tuple(a.shape)} and {tuple(b.shape)}."
            )
        total = a.new_zeros(len(a), dtype=torch.float32)
        for first, second, weights in zip(self._tapped(a), self._tapped(b), self.linear, strict=True):
            with torch.autocast(a.device.type, enabled=False):
                difference = (_unit(first) - _unit(second)).square()
                total = total + torch.einsum("c,bchw->b", weights.to(difference), difference) / first[0, 0].numel()
        return total

    def _tapped(self, x: Tensor) -> list[Tensor]:
        h = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        h = h.contiguous(memory_format=torch.channels_last)
        found = []
        for index, layer in enumerate(self.features):
            h = layer(h)
            if index in self.taps:
                found.append(h)
        return found


def read_lpips(source: str | Path) -> LPIPS:
    """LPIPS with the weights in a folder, or in a repository ORG/NAME on the hub.

    Every `*.safetensors` there is looked through, at its top level; together they hold VGG16 by torchvision's names
    (`features.N.weight` and `.bias`, or the `net.sliceK.N.…` of lpips) and the linear layers (`lin0.model.1.weight` …
    `lin4.model.1.weight`). Other tensors, such as a classifier, are not read.

    Raises:
        InputError: no such folder or repository; pickles, which are not opened; a tensor that is missing, there twice,
            or of another shape than VGG16 has.
    """
    folder = _found(source)
    files = sorted(folder.glob("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if name in tensors and not torch.equal(tensors[name], tensor):
                raise InputError(f"{folder} holds two different tensors for {name}; leave one set of weights there.")
            tensors[name] = tensor
    _refuse_missing(tensors, folder)
    widths = [tensors[f"linear.{stage}"].numel() for stage in range(len(_DEPTHS))]
    network = LPIPS(widths)
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(weights.shape)}"
        for name, weights in network.state_dict().items()
        if tensors[name].shape != weights.shape
    ]
    if wrong:
        raise InputError(f"the weights in {folder} are not of VGG16 and its linear layers: {_few(wrong, '; ')}.")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network


def _unit(x: Tensor) -> Tensor:
    """Features of unit length over channels; the root is kept off 0, where its gradient is infinite."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + _EPSILON)


def _found(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.suffix in _PICKLES and path.exists():
        raise _pickled([path])
    if not is_hub_name(str(source)):
        raise InputError(
            f"weights of LPIPS: expected a folder with *.safetensors or ORG/NAME on the hub, received '{source}'."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors"]))
    except Exception as error:  # many kinds: offline, unknown, private, interrupted
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"no weights of LPIPS at {source}, neither here nor on the hub ({type(error).__name__}: {reason})."
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    """What LPIPS needs of a file, by its own names, float32."""
    found: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                if match := _CONVOLUTION.fullmatch(key):
                    found[f"features.{match[1]}.{match[2]}"] = weights.get_tensor(key).float()
                elif match := _LINEAR.fullmatch(key):
                    found[f"linear.{match[1]}"] = weights.get_tensor(key).float().flatten()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); fetch it again.") from error
    return found


def _refuse_missing(tensors: Mapping[str, Any], folder: Path) -> None:
    expected = LPIPS((1,) * len(_DEPTHS)).state_dict()
    missing = [re.sub(r"linear\.(\d)", r"lin\1.model.1.weight", name) for name in expected if name not in tensors]
    if not missing:
        return
    pickles = sorted(path for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise _pickled(pickles)
    raise InputError(
        f"the *.safetensors in {folder} lack {_few(missing)}; LPIPS needs the convolutions of VGG16 "
        "(features.0.weight … features.28.bias) and lin0.model.1.weight … lin4.model.1.weight."
    )


def _pickled(paths: Sequence[Path]) -> InputError:
    first = paths[0]
    return InputError(
        f"{_few([path.name for path in paths])}: pickles may run any code and are not opened; convert each once: "
        f'safetensors.torch.save_file(torch.load("{first.name}", "cpu", weights_only=True), "{first.stem}.safetensors")'
    )


def _few(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return between.join(names[:4]) + more
