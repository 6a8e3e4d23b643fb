"""`rectiflow encode`: the latents of a folder of pictures, to train in."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import resolve
from rectiflow.training.generator_config import RunConfig


@dataclass(frozen=True)
class Encode:
    """Write the latents of pictures, by a frozen autoencoder, into a folder; stopped, it goes on where it is run again.

    A latent recipe does this by itself; several runs may share one folder: --set latent.cache.dir=OUT.

    Args:
        autoencoder: A run or model folder, a folder that diffusers calls AutoencoderKL, or ORG/NAME on the hub.
        out: Folder of the latents.
        data: Folder of pictures.
        recipe: The latent recipe whose settings to start from.
        set: Settings laid over it, such as data.size=256 latent.cache.variants=2 or data.set=digit-scenes.
    """

    autoencoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AUTOENCODER")]
    out: Path
    data: Path | None = None
    recipe: str = "latent"
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()

    def __call__(self) -> int:
        """Encode; returns the exit status."""
        settings = [setting for group in self.set for setting in group]
        if self.data is not None:
            settings.append(f"data.dir={json.dumps(str(self.data.absolute()))}")
        config = resolve(self.recipe, None, settings)
        if not isinstance(config, RunConfig) or config.latent is None:
            raise InputError(f"recipe {self.recipe} trains in no latents; expected one such as latent.")

        from rich.console import Console

        from rectiflow.models.autoencoder import load_autoencoder, unfinished
        from rectiflow.training.run import pictures_of
        from rectiflow.workflow import encode

        console = Console()
        space = load_autoencoder(self.autoencoder)
        if note := unfinished(self.autoencoder):
            console.print(note, highlight=False, soft_wrap=True)
        try:
            encode(space, pictures_of(config, None, console), self.out, config, console)
        except KeyboardInterrupt:
            console.print(
                f"Stopped; the same command goes on after the last whole shard in {self.out}.", soft_wrap=True
            )
            return 130
        words = ["rectiflow", "train", self.recipe, "--autoencoder", self.autoencoder]
        words += [] if self.data is None else ["--data", str(self.data)]
        given = [setting for group in self.set for setting in group]
        words += ["--set", *given, f"latent.cache.dir={self.out.absolute()}"]
        console.print(f"Train in them: {shlex.join(words)}", highlight=False, soft_wrap=True)
        return 0
