"""A picture given: made larger, or coloured, by a U-Net that is told it beside the noise."""

from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.config import DataConfig
from rectiflow.networks.config import UNetConfig
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import PreviewConfig, RunConfig


def super_resolution() -> RunConfig:
    """Pictures of twice the height and width, from 32×32 to 64×64 for a folder, from 4×4 to 8×8 for the digits.

    No classes: what is in a picture is seen in what is given of it, and nobody need name it.
    """
    return RunConfig(
        recipe="super-resolution",
        data=DataConfig(set="folder", size=64, crop="random", flip=False),
        picture=PictureConfig(kind="low", factor=2),
        network=UNetConfig(classes=0, width=32, multipliers=(1, 2, 2), blocks=1, attention=(4,)),
        condition_dropout=0.0,
        steps=4000,
        batch=16,
        optimiser=OptimiserConfig(lr=1e-3, warmup=100, decay="linear"),
        ema=EmaConfig(decay=0.99),
        every=EveryConfig(log=20, held_out=500, preview=1000, first_preview=125, save=500),
        preview=PreviewConfig(count=6, rows=6, steps=20, solver="ab2"),
    )


def colour() -> RunConfig:
    """Grey pictures in colour, at 64×64 for a folder, at 32×32 for digit-scenes."""
    return super_resolution().model_copy(update={"recipe": "colour", "picture": PictureConfig(kind="grey")})
