"""The command that samples a model, as other commands tell it when they end."""

import shlex
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from rectiflow.base.errors import InputError

_LOOKED_AT, _LONGEST = 100, 100


def sample_command(target: Path, run: Path) -> str:
    """A command that the model takes as it stands, but for a picture that it is given.

    Args:
        target: what to sample: a run or a model folder.
        run: the run of which it comes, whose captions may be shown.

    Raises:
        InputError: there is no model.
    """
    from rectiflow.models.autoencoder import is_autoencoder, read_autoencoder_config
    from rectiflow.models.folder import find_model, read_model_config

    words, model = ["rectiflow", "sample", str(target)], find_model(target)
    if is_autoencoder(model):
        shape = read_autoencoder_config(model).shape
    else:
        config = read_model_config(model)
        shape = config.shape
        words += ["--prompt", _prompt(run)] if config.texts else []
        words += ["--picture", "FILE"] if config.picture is not None else []
    films = len(shape) == 4 and shape[1] > 1
    ending = "png" if not films else "mp4" if find_spec("av") else "gif"
    return shlex.join([*words, "--out", f"samples.{ending}"])


def _prompt(run: Path) -> str:
    """The first caption, of those held out if there are any, that can be shown in a line; cut if it is long."""
    from rectiflow.data.sets import open_set
    from rectiflow.training.run_folder import INDEX_NAME, read_run

    try:
        config, index = read_run(run).data, run / INDEX_NAME
        if config.set in ("folder", "shards") and not index.exists():
            return "a prompt"
        data = open_set(config, index if index.exists() else None)
    except (InputError, OSError):  # no run, or its data are gone
        return "a prompt"
    for images in (data.held_out, data.train):
        for caption in islice(images.every_caption(), _LOOKED_AT):
            prompt = " ".join(caption.split())[:_LONGEST].strip()
            if prompt and prompt.isprintable() and not prompt.startswith("-"):
                return prompt
    return "a prompt"
