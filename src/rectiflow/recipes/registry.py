"""All recipes by name, and how settings are laid over them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectiflow.autoencoders.config import overlay as overlay_autoencoder
from rectiflow.base.config import merge, parse_setting, read_yaml
from rectiflow.base.errors import InputError, unknown
from rectiflow.networks.presets import overlay
from rectiflow.recipes.autoencoder import autoencoder, frame_autoencoder, video_autoencoder
from rectiflow.recipes.clips import clips, video
from rectiflow.recipes.ddpm import ddpm
from rectiflow.recipes.digits import digits
from rectiflow.recipes.folder import folder
from rectiflow.recipes.gan import gan
from rectiflow.recipes.latent import latent, latent_256
from rectiflow.recipes.picture import colour, super_resolution
from rectiflow.recipes.text import scenes, text
from rectiflow.recipes.vae import vae
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.generator_config import RunConfig

AnyRun = RunConfig | AutoencoderRunConfig
RECIPES: dict[str, Callable[[], AnyRun]] = {
    "digits": digits,
    "ddpm": ddpm,
    "folder": folder,
    "autoencoder": autoencoder,
    "latent": latent,
    "latent-256": latent_256,
    "text": text,
    "scenes": scenes,
    "frame-autoencoder": frame_autoencoder,
    "video-autoencoder": video_autoencoder,
    "clips": clips,
    "video": video,
    "super-resolution": super_resolution,
    "colour": colour,
    "vae": vae,
    "gan": gan,
}


def resolve(recipe: str, file: Path | None = None, settings: Sequence[str] = ()) -> AnyRun:
    """The recipe's configuration, then the file's values, then the settings; later wins.

    Args:
        recipe: name of a recipe.
        file: YAML file of settings, or None.
        settings: such as "network.width=64"; `network.preset=S/2` stands for the numbers of that preset, and
            `network.kind=unet` for that kind with its own defaults, and the default rate unless the layer names one.

    Raises:
        InputError: no such recipe, field or value; one line.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((str(file), read_yaml(file)))
    config = RECIPES[recipe]()
    for origin, layer in layers:
        config = _with_layer(config, layer, origin)
    return with_settings(config, settings)


def with_settings(config: AnyRun, settings: Sequence[str]) -> AnyRun:
    """A configuration with settings laid over it, as `resolve` takes them.

    Raises:
        InputError: no such field or value; one line.
    """
    together: dict[str, Any] = {}
    for setting in settings:
        together = merge(together, parse_setting(setting))
    return _with_layer(config, together, "--set") if together else config


def _with_layer(config: AnyRun, layer: Mapping[str, Any], origin: str) -> AnyRun:
    if layer.get("recipe", config.recipe) != config.recipe:
        raise InputError(f"{origin} is of recipe {layer['recipe']}, not {config.recipe}.")
    return type(config).parse(_laid_over(config.model_dump(mode="json"), layer), origin)


def _laid_over(below: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer of settings over a run's; presets and kinds of networks stand for their numbers."""
    if isinstance(network := layer.get("network"), Mapping):
        if below.get("objective") == "autoencoder":
            network = overlay_autoencoder(below["network"], network)
        else:
            network = overlay(below["network"], network)
            if network["kind"] != below["network"]["kind"]:
                del below["optimiser"]["lr"]  # it was chosen for the network that is no more
        below, layer = {**below, "network": None}, {**layer, "network": network}
    data, pictures = layer.get("data"), below["data"]
    if isinstance(data, Mapping) and data.get("set", pictures["set"]) not in (pictures["set"], "shards"):
        below = {**below, "data": {**pictures, "size": None}}  # a built-in set has its own
    for stage in ("train", "pictures"):
        latent, there = layer.get("latent"), below.get("latent")
        if isinstance(latent, Mapping) and isinstance(there, dict) and isinstance(latent.get(stage), Mapping):
            if there[stage] is None:
                raise InputError(f"{below['recipe']} has no latent.{stage} to lay settings over; choose recipe clips.")
            first = _laid_over(there[stage], latent[stage])
            below = {**below, "latent": {**there, stage: None}}
            layer = {**layer, "latent": {**latent, stage: first}}
    return merge(below, layer)
