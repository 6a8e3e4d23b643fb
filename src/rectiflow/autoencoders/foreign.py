"""Autoencoders as diffusers keeps them (AutoencoderKL: of SD, SDXL, SD3, FLUX), read and written without diffusers.

Whoever reads such a folder computes (l − shift)·scale, or (l − latents_mean)·scale/latents_std, and the inverse before
decoding: a mean and a deviation per channel, which `LatentSpace` keeps. Pickles are never loaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rectiflow.autoencoders.foreign_layout import CLASS, Layout, config_of, refusal, settings_of, statistics_of
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError
from rectiflow.base.files import write_folder
from rectiflow.hub import is_hub_name

WEIGHTS = "diffusion_pytorch_model"
# A pattern's * also matches "/": *.safetensors would fetch a pipeline's every network.
_FILES = [
    folder + file for folder in ("", "vae/") for file in ("config.json", f"{WEIGHTS}*.safetensors", f"{WEIGHTS}*.json")
]

_SIDES = {"encoder": "down_blocks", "decoder": "up_blocks"}
_PLACES = {"first": 0, "second": 1}
_RESIDUAL = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2", "skip": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_foreign(folder: Path) -> bool:
    """Whether `folder`, or its vae/, has a config.json of diffusers, which names a class."""
    return _class_name(_home(folder) / "config.json") is not None


def find_foreign(name: str) -> Path:
    """A folder here, or ORG/NAME on the hub, fetched into the hub's own cache; of a pipeline only its vae/.

    Raises:
        InputError: there is neither, or no way to it.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not is_hub_name(name):
        raise InputError(f"no autoencoder at {name}: expected a folder, or a name on the hub like org/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # many kinds: offline, unknown, private, interrupted
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"no autoencoder at {name}, neither here nor on the hub ({reason}).") from error


def read_foreign(folder: Path) -> LatentSpace:
    """The AutoencoderKL in `folder`, or in the vae/ of a pipeline's folder: float32, on the CPU, frozen.

    Its mean is shift_factor or latents_mean, its deviation 1/scaling_factor or latents_std/scaling_factor.

    Raises:
        InputError: another class, or a layout that our VAE does not have; no safetensors; tensors missing, left over,
            of another shape, or not of a floating type.
    """
    home = _home(folder)
    origin = home / "config.json"
    layout = _read_layout(origin)
    mean, deviation = statistics_of(layout, origin)
    with torch.device("meta"):
        network = VAE(config_of(layout, origin))
    weights = _fitted(network, _read_weights(home), home)
    network.to_empty(device="cpu").load_state_dict(weights)
    return LatentSpace(network.eval().requires_grad_(False), mean, deviation)


def write_foreign(space: LatentSpace, folder: Path) -> None:
    """Write `space` as an AutoencoderKL for `diffusers.AutoencoderKL.from_pretrained(folder)`, whole or not at all.

    A mean and a deviation that all channels share become shift_factor and 1/scaling_factor. Others are folded into
    the 1×1 convolutions around the latents, since few readers look at latents_mean: (m − μ)/σ and log s² − 2·log σ
    there, l·σ + μ back, with scaling_factor 1 and shift_factor 0. Folding leaves one difference: diffusers clamps
    log-variances to [−30, 20] after these convolutions, `LatentSpace` before it normalises.

    Raises:
        InputError: an autoencoder of clips, or with a linear code, which that layout lacks; the folder holds something
            else, or the disk is full or read-only; what was there is kept.
    """
    if space.temporal > 1:
        raise InputError(f"this autoencoder is of clips, which {CLASS} knows nothing of; export one of pictures.")
    if space.network.config.linear:
        raise InputError(
            f"this autoencoder has a linear code beside its convolutions, which {CLASS} lacks; train one to export "
            "with --set network.linear=false."
        )
    replaceable = folder.is_dir() and (_class_name(folder / "config.json") == CLASS or not any(folder.iterdir()))
    if folder.exists() and not replaceable:
        raise InputError(f"{folder} holds something other than an {CLASS}; choose a folder that is not there yet.")
    config = space.network.config
    weights = {name: value.detach().cpu().float() for name, value in space.network.state_dict().items()}
    mean, deviation = float(space.mean[0]), float(space.deviation[0])
    if bool((space.mean != mean).any() or (space.deviation != deviation).any()):
        weights |= _folded(weights, space)
        config, mean, deviation = config.model_copy(update={"quantised": True}), 0.0, 1.0
    theirs = {_theirs(name, config.blocks): value.contiguous() for name, value in weights.items()}
    settings = json.dumps(settings_of(config, mean, deviation), indent=2) + "\n"

    def fill(aside: Path) -> None:
        try:
            save_file(theirs, aside / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (aside / "config.json").write_text(settings, encoding="utf-8")

    write_folder(folder, fill)


def _home(folder: Path) -> Path:
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); restore the file.") from error


def _class_name(path: Path) -> str | None:
    """The class that a config.json of diffusers names; None of any other file."""
    try:
        values = _read_json(path)
    except InputError:
        return None
    return str(values["_class_name"]) if isinstance(values, dict) and "_class_name" in values else None


def _read_layout(path: Path) -> Layout:
    if not path.is_file():
        raise InputError(f"{path.parent} is no autoencoder: it has neither config.json nor vae/config.json.")
    values, name = _read_json(path), _class_name(path)
    if name != CLASS:
        raise refusal(path, "_class_name", f"{CLASS}, as of SD, SDXL, SD3 and FLUX", name)
    # The other settings, such as sample_size and force_upcast, leave the weights' meaning as it is.
    return Layout.parse({key: value for key, value in values.items() if key in Layout.model_fields}, str(path))


def _weight_files(home: Path) -> list[Path]:
    for variant in ("", ".fp16", ".bf16"):
        whole, index = home / f"{WEIGHTS}{variant}.safetensors", home / f"{WEIGHTS}.safetensors.index{variant}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            try:
                names = sorted(set(map(str, _read_json(index)["weight_map"].values())))
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{index} has no weight_map from tensors to files; restore it.") from error
            for name in names:
                if Path(name).name != name or not (home / name).is_file():
                    raise InputError(f"{index} names the file {name}, which is not beside it; restore it.")
            return [home / name for name in names]
    raise InputError(
        f"{home} has no {WEIGHTS}.safetensors. Pickles (.bin, .ckpt, .pt) may run code and are never loaded; convert "
        f"one that you trust: diffusers.{CLASS}.from_pretrained(NAME).save_pretrained(FOLDER)."
    )


def _read_weights(home: Path) -> dict[str, Tensor]:
    """Tensors as they are kept, by diffusers' present names."""
    weights: dict[str, Tensor] = {}
    for path in _weight_files(home):
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is no safetensors file: {error}.") from error
        for name, value in found.items():
            if not value.is_floating_point() or value.element_size() < 2:
                raise InputError(f"{path}: tensor {name}: expected floats of 16 to 64 bits, received {value.dtype}.")
            weights[_present(name)] = value
    return weights


def _fitted(network: VAE, weights: Mapping[str, Tensor], home: Path) -> dict[str, Tensor]:
    """`weights` by our names and in our shapes."""
    ours = {_theirs(name, network.config.blocks): (name, value.shape) for name, value in network.state_dict().items()}
    fitted: dict[str, Tensor] = {}
    problems = [f"{name} is left over" for name in weights if name not in ours]
    for theirs, (name, shape) in ours.items():
        if theirs not in weights:
            problems.append(f"{theirs} is missing")
            continue
        value = weights[theirs]
        # The oldest files keep the attention's matrices as 1×1 convolutions.
        fitted[name] = value[..., 0, 0] if value.shape == (*shape, 1, 1) else value
        if fitted[name].shape != shape:
            problems.append(f"{theirs}: expected {tuple(shape)}, received {tuple(value.shape)}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"the weights in {home} are not those that its config.json describes: {'; '.join(problems[:3])}{more}. "
            "Restore the two files from one source."
        )
    return fitted


def _present(name: str) -> str:
    """diffusers' present name of a tensor that may have its former one."""
    if ".attentions." not in name:
        return name
    owner, layer, leaf = name.rsplit(".", 2)
    return f"{owner}.{_FORMER.get(layer, layer)}.{leaf}"


def _theirs(name: str, blocks: int) -> str:
    """diffusers' name of our tensor `name`, for `blocks` residual blocks in a level of the encoder."""
    match name.split("."):
        case ["to_moments", leaf]:
            return f"quant_conv.{leaf}"
        case ["from_latents", leaf]:
            return f"post_quant_conv.{leaf}"
        case [side, "blocks", index, layer, leaf]:
            level, place = divmod(int(index), blocks + (side == "decoder"))
            return f"{side}.{_SIDES[side]}.{level}.resnets.{place}.{_RESIDUAL[layer]}.{leaf}"
        case [side, "shrink" | "grow" as change, level, leaf]:
            step = "downsamplers" if change == "shrink" else "upsamplers"
            return f"{side}.{_SIDES[side]}.{level}.{step}.0.conv.{leaf}"
        case [side, "middle", "attention", layer, leaf]:
            return f"{side}.mid_block.attentions.0.{_ATTENTION[layer]}.{leaf}"
        case [side, "middle", place, layer, leaf]:
            return f"{side}.mid_block.resnets.{_PLACES[place]}.{_RESIDUAL[layer]}.{leaf}"
        case [side, "norm_out", leaf]:
            return f"{side}.conv_norm_out.{leaf}"
    return name


def _folded(weights: Mapping[str, Tensor], space: LatentSpace) -> dict[str, Tensor]:
    """The convolutions around the latents with the normalisation in them, computed in float64."""
    mean, deviation = space.mean.double(), space.deviation.double()
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    offset = torch.cat([-mean / deviation, -2 * deviation.log()])
    folded: dict[str, Tensor] = {}
    for name, channels in (("to_moments", 2 * len(mean)), ("from_latents", len(mean))):
        kernel = weights.get(f"{name}.weight", torch.eye(channels)[..., None, None]).double()
        bias = weights.get(f"{name}.bias", torch.zeros(channels)).double()
        if name == "to_moments":
            kernel, bias = kernel * scale[:, None, None, None], bias * scale + offset
        else:
            kernel, bias = kernel * deviation[:, None, None], bias + kernel[..., 0, 0] @ mean
        folded |= {f"{name}.weight": kernel.float(), f"{name}.bias": bias.float()}
    return folded
