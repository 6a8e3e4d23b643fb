"""`rectiflow encode`: the latents of a folder of pictures, to train in."""

import json
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.cli.together import together
from rectiflow.recipes.registry import resolve
from rectiflow.training.generator_config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from rectiflow.data.images import ImageSet


@dataclass(frozen=True)
class Encode:
    """Write the latents of pictures, by a frozen autoencoder, into a folder; stopped, it goes on where it is run again.

    A latent recipe does this by itself; several runs may share one folder: --set latent.cache.dir=OUT. Under torchrun
    each process writes a part of the shards.

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
        try:
            with together(self) as first:
                self._encode(first)
        except KeyboardInterrupt:
            print(f"Stopped; the same command goes on after the last whole shard in {self.out}.")
            return 130
        return 0

    def _encode(self, first: bool) -> None:
        settings = [setting for group in self.set for setting in group]
        if self.data is not None:
            settings.append(f"data.dir={json.dumps(str(self.data.absolute()))}")
        config = resolve(self.recipe, None, settings)
        if not isinstance(config, RunConfig) or config.latent is None:
            raise InputError(f"recipe {self.recipe} trains in no latents; expected one such as latent.")

        from rectiflow.base.ranks import first_then_others
        from rectiflow.base.terminal import plain_console
        from rectiflow.models.autoencoder import load_autoencoder, unfinished
        from rectiflow.workflow import encode

        console = plain_console(quiet=not first)
        with first_then_others():  # it may have to be downloaded
            space = load_autoencoder(self.autoencoder)
        if note := unfinished(self.autoencoder):
            console.print(note, soft_wrap=True)
        with _pictures(config, self.out, console) as data:
            encode(space, data, self.out, config, console)
        words = ["rectiflow", "train", self.recipe, "--autoencoder", self.autoencoder]
        words += [] if self.data is None else ["--data", str(self.data)]
        given = [setting for group in self.set for setting in group]
        words += ["--set", *given, f"latent.cache.dir={self.out.absolute()}"]
        console.print(f"Train in them: {shlex.join(words)}", soft_wrap=True)


@contextmanager
def _pictures(config: RunConfig, out: Path, console: "Console") -> Iterator["ImageSet"]:
    """What to encode. Of several processes the first one looks through the folder, and the others open what it found,
    which lies beside `out` meanwhile.

    Raises:
        InputError: nothing there can be encoded, or the disk is full or read-only; one line.
    """
    from rectiflow.base.ranks import first_then_others, from_first, started
    from rectiflow.data.sets import keep_index, open_set
    from rectiflow.training.run import pictures_of

    if not started():
        yield pictures_of(config, None, console)
        return
    index = out.parent / from_first(f".{out.name}.{secrets.token_hex(4)}.inventory")
    with first_then_others() as mine:
        if mine:
            data = pictures_of(config, None, console)
            keep_index(data, index)
        else:
            data = open_set(config.data, index)
    try:
        yield data
    finally:
        if mine:
            shutil.rmtree(index, ignore_errors=True)
