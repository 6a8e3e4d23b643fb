"""An autoencoder as files: alone, as what the first stage of a latent model leaves, or inside of a model."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from rectiflow.autoencoders.autoencoder import Autoencoder
from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import check_frames
from rectiflow.autoencoders.foreign import find_foreign, is_foreign, read_foreign
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.base.files import write_folder
from rectiflow.base.randomness import Key
from rectiflow.models.folder import (
    AUTOENCODER_WEIGHTS,
    CONVENTIONS,
    FORMAT_VERSION,
    AutoencoderRecord,
    find_model,
    read_config_file,
    read_model_config,
)
from rectiflow.models.weights import read_weights, save_weights

_CHUNK = 32


class AutoencoderModelConfig(Config):
    """What `config.json` says of an autoencoder that is a model by itself.

    Args:
        kind: "autoencoder".
        format_version: of the folder's layout.
        library_version: of rectiflow, that wrote it.
        conventions: as for a model.
        autoencoder: architecture and latent statistics.
        shape: C, H, W of a picture, or C, T, H, W of a clip, as trained.
        training: where it comes from (recipe, step); for readers only.
        weights: SHA-256 of each weight file by its name.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    format_version: int
    library_version: str
    conventions: dict[str, str]
    autoencoder: AutoencoderRecord
    shape: tuple[int, ...]
    training: dict[str, Any]
    weights: dict[str, str]

    @model_validator(mode="after")
    def _shape_is_the_networks(self) -> Self:
        channels = self.autoencoder.network.channels
        if self.shape[0] != channels or min(self.shape) < 1:
            raise ValueError(
                f"shape {list(self.shape)} does not suit a network of {channels} channels; restore the file"
            )
        check_frames(self.autoencoder.network.temporal, self.shape)
        return self


def record_of(space: LatentSpace) -> AutoencoderRecord:
    """What a model's `config.json` says of its autoencoder."""
    return AutoencoderRecord(
        network=space.network.config,
        mean=tuple(space.mean.tolist()),
        deviation=tuple(space.deviation.tolist()),
    )


def restored(record: AutoencoderRecord, folder: Path, hashes: dict[str, str]) -> LatentSpace:
    """The autoencoder that a model's `config.json` states, frozen, with its weights.

    Raises:
        InputError: its weights are missing, altered or of another shape.
    """
    channels, path = record.network.latent_channels, folder / AUTOENCODER_WEIGHTS
    if len(record.mean) != channels or len(record.deviation) != channels:
        raise InputError(
            f"{folder / 'config.json'}: expected a mean and a deviation for each of the {channels} latent channels, "
            f"received {len(record.mean)} and {len(record.deviation)}; restore the file."
        )
    with torch.device("meta"):
        numbers = sum(weight.numel() for weight in build_autoencoder(record.network).parameters())
    # Before memory is taken: no number is kept in less than a byte.
    if path.is_file() and numbers > path.stat().st_size:
        raise InputError(
            f"{folder / 'config.json'} asks for {numbers} numbers, but {path.name} has {path.stat().st_size} bytes; "
            "restore the two files from one source."
        )
    network = build_autoencoder(record.network)
    read_weights(network, folder / AUTOENCODER_WEIGHTS, hashes)
    network.requires_grad_(False).eval()
    return LatentSpace(network, torch.tensor(record.mean), torch.tensor(record.deviation))


def save_autoencoder(space: LatentSpace, shape: tuple[int, ...], training: dict[str, Any], folder: Path) -> None:
    """Write an autoencoder as a model folder, whole or not at all.

    Raises:
        InputError: the disk is full or read-only; a model that was there is kept.
    """

    def fill(aside: Path) -> None:
        digest = save_weights(space.network, aside / AUTOENCODER_WEIGHTS)
        config = AutoencoderModelConfig(
            format_version=FORMAT_VERSION,
            library_version=version("rectiflow"),
            conventions=CONVENTIONS,
            autoencoder=record_of(space),
            shape=shape,
            training=training,
            weights={AUTOENCODER_WEIGHTS: digest},
        )
        (aside / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def load_autoencoder(name: str) -> LatentSpace:
    """An autoencoder, frozen: of an autoencoder's run or model folder, inside of a latent model, of a folder that
    diffusers calls AutoencoderKL (or a pipeline around one), or of ORG/NAME on the hub.

    Raises:
        InputError: there is none there, or it is damaged; one line.
    """
    folder = Path(name)
    if is_foreign(folder):
        return read_foreign(find_foreign(name))
    if not folder.exists():
        found = find_foreign(name)
        if is_foreign(found):
            return read_foreign(found)
    folder = find_model(folder)
    if is_autoencoder(folder):
        config = read_autoencoder_config(folder)
        return restored(config.autoencoder, folder, config.weights)
    model = read_model_config(folder)
    if not isinstance(model.autoencoder, AutoencoderRecord):
        raise InputError(f"{name} is a model of pixels and has no autoencoder; train one: rectiflow train autoencoder.")
    return restored(model.autoencoder, folder, model.weights)


def unfinished(name: str) -> str:
    """What is to be said of an autoencoder whose run stopped before its last step; empty if nothing is."""
    folder = Path(name)
    if is_foreign(folder) or not folder.exists():
        return ""
    folder = find_model(folder)
    about = read_autoencoder_config(folder).training if is_autoencoder(folder) else {}
    step, steps = about.get("step"), about.get("steps")
    if not isinstance(step, int) or not isinstance(steps, int) or step >= steps:
        return ""
    return f"note: the autoencoder {name} was stopped after step {step} of {steps}; it is taken as it is."


def describe_autoencoder(folder: Path) -> dict[str, Any]:
    """What the autoencoder in `folder` is, in plain values, without loading its weights."""
    config = read_autoencoder_config(folder)
    with torch.device("meta"):
        size = sum(p.numel() for p in build_autoencoder(config.autoencoder.network).parameters())
    return {
        "model": str(folder),
        "kind": "autoencoder",
        "recipe": config.training.get("recipe"),
        "model_step": config.training.get("step"),
        "parameters": size,
        "picture": "×".join(map(str, config.shape)),
        "factor": config.autoencoder.network.factor,
        "temporal_factor": config.autoencoder.network.temporal,
        "autoencoder": config.autoencoder.model_dump(),
        "conventions": config.conventions,
        "written_by": f"rectiflow {config.library_version}, format {config.format_version}",
    }


def is_autoencoder(folder: Path) -> bool:
    """Whether the model in `folder`, which has a `config.json`, is an autoencoder by itself.

    Raises:
        InputError: the file cannot be read, or is of diffusers' layout.
    """
    if is_foreign(folder):
        raise InputError(
            f"{folder} is in diffusers' layout, which is taken as an autoencoder alone; train a flow in it: "
            f"rectiflow train latent --autoencoder {folder} --data DIR"
        )
    return read_config_file(folder).get("kind") == "autoencoder"


def read_autoencoder_config(folder: Path) -> AutoencoderModelConfig:
    """Read and check the `config.json` of an autoencoder.

    Raises:
        InputError: it cannot be read, is newer than this library, or follows other conventions.
    """
    return AutoencoderModelConfig.parse(read_config_file(folder), str(folder / "config.json"))


def digest(autoencoder: Autoencoder) -> str:
    """SHA-256 over all that an autoencoder's latents depend on: weights, architecture, mean and deviation."""
    if not isinstance(autoencoder, LatentSpace):
        return "identity"
    config = autoencoder.network.config
    # Of pictures the digest is what it was before clips were, so that caches stay good.
    settings = config.model_dump_json(exclude={"temporal"} if config.temporal == 1 else None)
    found = hashlib.sha256(settings.encode())
    parts = {**autoencoder.network.state_dict(), "mean": autoencoder.mean, "deviation": autoencoder.deviation}
    for name, tensor in sorted(parts.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return found.hexdigest()


def prior_pictures(
    space: LatentSpace, shape: tuple[int, ...], count: int, seed: int, index: Tensor | None = None
) -> Tensor:
    """Pictures or clips decoded from the VAE's own prior l ~ N(0, I), which its encoder's latents only resemble.

    Args:
        space: the autoencoder.
        shape: C, H, W of a picture, or C, T, H, W of a clip.
        count: N.
        seed: picture i depends on (seed, i) alone.
        index: which of the N to make, int64; all if left out.

    Returns:
        N×C×H×W or N×C×T×H×W in about [−1, 1].

    Raises:
        InputError: no pictures, a side below 1, or a shape that is not the autoencoder's.
    """
    if count < 1 or min(shape) < 1:
        raise InputError(f"expected a count and sides of at least 1, received {count} and {shape[-2]}×{shape[-1]}.")
    check_frames(space.temporal, shape)
    index = torch.arange(count) if index is None else index
    size, latent = (shape[-2], shape[-1]), space.latent_shape(shape)
    mean, deviation = (values.reshape(-1, *[1] * (len(latent) - 1)) for values in (space.mean, space.deviation))
    made = []
    for part in torch.split(index, _CHUNK):
        latents = Key(seed, "noise").normal(part, latent)
        with torch.no_grad():
            made.append(space.decode((latents - mean) / deviation, size).float().cpu())
    return torch.cat(made)
