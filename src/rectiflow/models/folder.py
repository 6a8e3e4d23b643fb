"""A model as files: `config.json`, which says all that the weights mean, and the weights with their hashes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.base.files import write_folder
from rectiflow.conditioning.config import TextRecord
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.conditioning.text import TextEncoder
from rectiflow.flow.config import FlowConfig
from rectiflow.hub import fetch, is_hub_name
from rectiflow.models.weights import save_weights
from rectiflow.networks.build import build
from rectiflow.networks.config import NetworkConfig

FORMAT_VERSION = 4
CONVENTIONS = {
    "time": "t=0 data, t=1 noise; x_t = alpha(t) x + beta(t) z",
    "velocity": "v = alpha'(t) x + beta'(t) z",
    "guidance": "v = (1+w) v_y - w v_null; w=0 is none",
    "pixels": "float in [-1, 1], BxCxHxW",
}
WEIGHTS = "flow.safetensors"
SHIPPED = Path(__file__).parent.parent / "shipped"  # models that come with the package, by their folders' names
AUTOENCODER_WEIGHTS = "autoencoder.safetensors"


class AutoencoderRecord(Config):
    """What `config.json` says of an autoencoder.

    Args:
        network: its architecture.
        mean: of each latent channel, C′ numbers.
        deviation: of each latent channel, > 0; the flow sees (l − mean) / deviation.
    """

    network: AutoencoderConfig
    mean: tuple[float, ...]
    deviation: tuple[Annotated[float, Field(gt=0)], ...]


class ModelConfig(Config):
    """What `config.json` says of a model.

    Args:
        format_version: of the folder's layout.
        library_version: of rectiflow, that wrote it.
        conventions: time, velocity, guidance and pixels, in words; another text is refused.
        flow: schedule, prediction and time shift.
        network: architecture.
        autoencoder: "identity", pixel space, or the autoencoder whose weights lie beside the flow's.
        class_names: name of each label; empty for an unconditional model.
        texts: what reads its prompts; empty for a model that takes none.
        picture: the picture that it is given; None for a model that is given none.
        frames: the frames that it may be given, for a model of clips; None for one that is given none.
        null_trained: whether it was trained with condition dropout, which guidance needs.
        shape: C, H, W of a picture as trained, or C, T, H, W of a clip.
        training: where it comes from (recipe, step), and the frames a second of its clips (`rate`) if it was given any.
        weights: SHA-256 of each weight file by its name.
    """

    format_version: int
    library_version: str
    conventions: dict[str, str]
    flow: FlowConfig
    network: NetworkConfig
    autoencoder: AutoencoderRecord | Literal["identity"]
    class_names: tuple[str, ...]
    texts: tuple[TextRecord, ...] = ()
    picture: PictureConfig | None = None
    frames: FramesConfig | None = None
    null_trained: bool
    shape: tuple[int, ...]
    training: dict[str, Any]
    weights: dict[str, str]


def write_model(
    folder: Path,
    network: nn.Module,
    autoencoder: nn.Module | None,
    encoders: Sequence[TextEncoder],
    config: ModelConfig,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `config.json`, with the SHA-256 of the weights, and the weights, whole or not at all.

    Args:
        folder: where to.
        network: the flow's.
        autoencoder: its network, if the flow works in latents.
        encoders: what reads prompts.
        config: all else; hashes and what is said of the encoders are filled in.
        dtype: as for `save_weights`.

    Raises:
        InputError: the disk is full or read-only; a model that was there is kept.
    """

    def fill(aside: Path) -> None:
        hashes = {WEIGHTS: save_weights(network, aside / WEIGHTS, dtype)}
        if autoencoder is not None:
            hashes[AUTOENCODER_WEIGHTS] = save_weights(autoencoder, aside / AUTOENCODER_WEIGHTS, dtype)
        records = []
        for number, encoder in enumerate(encoders):
            record, files = encoder.save(aside, number)
            records.append(record)
            hashes |= files
        hashed = config.model_copy(update={"weights": hashes, "texts": tuple(records)})
        (aside / "config.json").write_text(hashed.model_dump_json(indent=2) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is, or holds as a run, or names: one that ships with us, or one on the hub.

    Raises:
        InputError: it is neither.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if (SHIPPED / folder / "config.json").is_file() and len(folder.parts) == 1:
        return SHIPPED / folder
    if is_hub_name(str(folder)):
        return fetch(str(folder))
    if not folder.exists():
        raise InputError(f"no run or model at {folder}: no such folder. Train one with: rectiflow train digits")
    if (folder / "run.yaml").is_file():
        raise InputError(f"the run {folder} has no model yet; go on with: rectiflow train --resume {folder}")
    raise InputError(f"{folder} is neither a run (run.yaml) nor a model (config.json).")


def read_config_file(folder: Path) -> dict[str, Any]:
    """The values of `config.json`, of whatever kind of model.

    Raises:
        InputError: it cannot be read, is newer than this library, or follows other conventions.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); restore the file.") from error
    found = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(found, int):
        raise InputError(f"{path} is no model of rectiflow: it has no format_version.")
    if found > FORMAT_VERSION:
        raise InputError(
            f"{folder} was written by rectiflow {values.get('library_version')} in format {found}; this version "
            f"reads up to {FORMAT_VERSION}. Upgrade rectiflow."
        )
    stated = values.get("conventions")
    if isinstance(stated, dict) and stated != CONVENTIONS:
        wrong = next(k for k in {**CONVENTIONS, **stated} if CONVENTIONS.get(k) != stated.get(k))
        raise InputError(
            f"{path} states another convention for {wrong}: expected '{CONVENTIONS.get(wrong)}', "
            f"received '{stated.get(wrong)}'."
        )
    return dict(values)


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check the `config.json` of a model that has a flow.

    Raises:
        InputError: it cannot be read, is newer than this library, follows other conventions, or is an autoencoder's.
    """
    values = read_config_file(folder)
    if values.get("kind") == "autoencoder":
        recipe = "video" if len(values.get("shape", ())) == 4 else "latent"
        raise InputError(
            f"{folder} is an autoencoder, not a model with a flow; train one in its latents: "
            f"rectiflow train {recipe} --autoencoder {folder} --data DIR"
        )
    return ModelConfig.parse(values, str(folder / "config.json"))


def describe(folder: Path) -> dict[str, Any]:
    """What the model in `folder` is, in plain values, without loading its weights."""
    config = read_model_config(folder)
    with torch.device("meta"):
        size = sum(p.numel() for p in build(config.network).parameters())
    return {
        "model": str(folder),
        "recipe": config.training.get("recipe"),
        "model_step": config.training.get("step"),
        "parameters": size,
        "picture": "×".join(map(str, config.shape)),
        "classes": list(config.class_names),
        "prompts": [record.model_dump(mode="json") for record in config.texts],
        "given_picture": None if config.picture is None else config.picture.model_dump(exclude={"dir"}),
        "given_frames": None if config.frames is None else config.frames.model_dump(),
        "flow": config.flow.model_dump(),
        "network": config.network.model_dump(),
        "autoencoder": config.autoencoder if isinstance(config.autoencoder, str) else config.autoencoder.model_dump(),
        "guidance_trained": config.null_trained,
        "conventions": config.conventions,
        "written_by": f"rectiflow {config.library_version}, format {config.format_version}",
    }
