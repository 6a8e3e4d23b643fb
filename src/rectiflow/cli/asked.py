"""The run that the arguments of a command ask for."""

import json
from collections.abc import Iterable
from pathlib import Path

from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import RECIPES, AnyRun, resolve


def asked_run(
    recipe: str,
    data: Path | None,
    autoencoder: str,
    source: Path | None,
    config: Path | None,
    settings: Iterable[Iterable[str]],
) -> AnyRun:
    """A recipe, then a file, then settings; later wins.

    Args:
        recipe: its name.
        data: folder of pictures to train on, or None.
        autoencoder: in whose latents to train, or empty.
        source: folder of other pictures to start from, or None.
        config: YAML file of settings, or None.
        settings: groups of settings, such as network.width=64.

    Raises:
        InputError: no such recipe, field or value, or an autoencoder for a recipe that takes none; one line.
    """
    layer = listed(settings)
    if data is not None:
        layer.append(f"data.dir={json.dumps(str(data.absolute()))}")
    if autoencoder:
        if recipe in RECIPES and getattr(RECIPES[recipe](), "latent", None) is None:
            raise InputError(f"recipe {recipe} trains in no latents, so it takes no --autoencoder; use latent.")
        there = Path(autoencoder)
        name = str(there.absolute()) if there.exists() else autoencoder
        layer.append(f"latent.autoencoder={json.dumps(name)}")
    if source is not None:
        layer += [f"data.source_dir={json.dumps(str(source.absolute()))}", "flow.source=pictures"]
    return resolve(recipe, config, layer)


def listed(settings: Iterable[Iterable[str]]) -> list[str]:
    """The settings of all --set of a command, in the order given."""
    return [setting for group in settings for setting in group]
