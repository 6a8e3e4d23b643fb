"""All recipes by name, and how settings are laid over them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectiflow.base.config import merge, parse_setting, read_yaml
from rectiflow.base.errors import InputError, unknown
from rectiflow.networks.config import overlay
from rectiflow.recipes.ddpm import ddpm
from rectiflow.recipes.digits import digits
from rectiflow.recipes.folder import folder
from rectiflow.recipes.gan import gan
from rectiflow.recipes.vae import vae
from rectiflow.training.config import RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "ddpm": ddpm,
    "folder": folder,
    "vae": vae,
    "gan": gan,
}


def resolve(recipe: str, file: Path | None = None, settings: Sequence[str] = ()) -> RunConfig:
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
    together: dict[str, Any] = {}
    for setting in settings:
        together = merge(together, parse_setting(setting))
    if together:
        layers.append(("--set", together))
    config = RECIPES[recipe]()
    for origin, layer in layers:
        if "recipe" in layer and layer["recipe"] != recipe:
            raise InputError(f"{origin} is of recipe {layer['recipe']}, not {recipe}.")
        below = config.model_dump(mode="json")
        if isinstance(network := layer.get("network"), Mapping):
            network = overlay(below["network"], network)
            if network["kind"] != below["network"]["kind"]:
                del below["optimiser"]["lr"]  # it was chosen for the network that is no more
            below, layer = {**below, "network": None}, {**layer, "network": network}
        config = RunConfig.parse(merge(below, layer), origin)
    return config
