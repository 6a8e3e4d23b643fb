"""A folder of pictures, with or without classes."""

from rectiflow.data.config import DataConfig
from rectiflow.networks.config import DiTConfig
from rectiflow.training.config import EveryConfig, OptimiserConfig, PreviewConfig, RunConfig


def folder() -> RunConfig:
    """Your own pictures, at 64×64, by a small transformer that two cores can train in an evening."""
    return RunConfig(
        recipe="folder",
        data=DataConfig(set="folder", size=64),
        network=DiTConfig(patch=8, width=192, depth=6, heads=6),
        condition_dropout=0.1,
        steps=10_000,
        batch=32,
        optimiser=OptimiserConfig(lr=1e-3, warmup=200, decay="linear"),
        ema=0.999,
        every=EveryConfig(log=20, held_out=250, preview=500, first_preview=16, save=250),
        preview=PreviewConfig(count=6, steps=20, solver="ab2"),
    )
