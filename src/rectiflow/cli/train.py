"""`rectiflow train`: a recipe, then a file, then settings; later wins."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.cli.asked import asked_run, listed
from rectiflow.recipes.registry import RECIPES, with_settings


@dataclass(frozen=True)
class Train:
    """Train a recipe, or go on with a run.

    Args:
        recipe: Name of the recipe, such as digits.
        data: Folder of pictures to train on, for recipes that take one.
        autoencoder: Autoencoder in whose latents to train (recipe latent): a run or model folder, a folder that
            diffusers calls AutoencoderKL, or ORG/NAME on the hub; one is trained first if left out.
        source: Folder of other pictures to start from instead of noise: a bridge from them to those of --data.
        run: Folder of the run; runs/RECIPE if left out, runs/NAME for a folder of that name.
        config: YAML file of settings laid over the recipe.
        set: Settings laid over both, such as network.width=64 or network.preset=S/2; values are YAML.
        resume: Go on with this run, by its own run.yaml; --set then changes how it is carried out, such as threads=4,
            from here on, and nothing else.
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    data: Path | None = None
    autoencoder: str = ""
    source: Path | None = None
    run: Path | None = None
    config: Path | None = None
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    resume: Path | None = None

    def __call__(self) -> int:
        """Train; returns the exit status."""
        others = (self.recipe, self.data, self.autoencoder, self.source, self.run, self.config)
        if self.resume is not None and any(others):
            raise InputError(
                "--resume takes everything from the run's own run.yaml; leave the other arguments but --set out."
            )
        if self.resume is None and not self.recipe:
            raise InputError(f"expected a recipe ({', '.join(RECIPES)}) or --resume RUN.")
        asked = None
        if self.resume is None:
            asked = asked_run(self.recipe, self.data, self.autoencoder, self.source, self.config, self.set)

        from rectiflow.base.memory_full import told_if_full
        from rectiflow.base.ranks import first, joined, started
        from rectiflow.base.terminal import plain_console
        from rectiflow.cli.hint import sample_command
        from rectiflow.training.interrupt import AtOnceError, die
        from rectiflow.training.run_folder import model_step, read_run
        from rectiflow.workflow import run

        name = self.data.absolute().name if self.data is not None else self.recipe
        folder = self.resume or self.run or Path("runs") / (name or self.recipe)
        with joined(), told_if_full():
            console, launcher = plain_console(quiet=not first()), "torchrun … -m -- " if started() else ""
            try:
                outcome = run(asked or with_settings(read_run(folder), listed(self.set)), folder, console)
            except AtOnceError as error:
                die(error.number)
        saved = model_step(folder / "model")
        if not outcome.finished:
            kept = f" and saved after step {outcome.step}" if outcome.step else ""
            words = f"Stopped{kept}. Go on: {launcher}rectiflow train --resume {folder}"
        elif not outcome.trained:
            words = f"{folder} is already trained ({outcome.step} steps)."
        elif saved != outcome.step:
            what = "it" if saved is None else "its last step"
            older = "" if saved is None else f" The model in {folder / 'model'} is that of step {saved}."
            words = f"{folder} is trained, and nothing of {what} was saved: every.save is 0.{older}"
        else:
            words = f"The model is in {folder / 'model'}. Sample: {sample_command(folder, folder)}"
        console.print(words, soft_wrap=True)
        return 0 if outcome.finished else 128 + outcome.signal
