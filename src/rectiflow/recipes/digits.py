"""Class-conditional rectified flow on scikit-learn's handwritten digits, in about two minutes on two cores."""

from rectiflow.data.config import DataConfig
from rectiflow.networks.config import DiTConfig
from rectiflow.training.config import EveryConfig, OptimiserConfig, RunConfig


def digits() -> RunConfig:
    """Handwritten digits, 8×8, ten classes.

    Chosen by the training split: a narrow network with patches of 2 and a high rate did better in the same time than
    wider ones with patches of 4 or 8, and batches of 128 better than more steps with 64.
    """
    return RunConfig(
        recipe="digits",
        data=DataConfig(set="digits"),
        network=DiTConfig(channels=1, classes=10, patch=2, width=48, depth=4, heads=1, modulation="block"),
        condition_dropout=0.1,
        steps=2000,
        batch=128,
        optimiser=OptimiserConfig(lr=1e-2, warmup=100, decay="linear"),
        ema=0.985,
        every=EveryConfig(log=50, held_out=500, preview=1000, save=1000),
    )
