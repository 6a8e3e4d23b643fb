"""Class-conditional rectified flow on scikit-learn's handwritten digits, in about two minutes on two cores."""

from rectiflow.data.config import DataConfig
from rectiflow.networks.config import DiTConfig
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import RunConfig


def digits() -> RunConfig:
    """Handwritten digits, 8×8, ten classes.

    Chosen by the training split, for equal time: patches of 2 with a narrow network did better than 4 or 8 with a wider
    one, two heads than one, batches of 128 than more steps with 64, a rate of 0.02 than 0.01 or 0.03, uniform times
    than logit-normal ones.
    """
    return RunConfig(
        recipe="digits",
        data=DataConfig(set="digits"),
        network=DiTConfig(patch=2, width=48, depth=4, heads=2, modulation="block"),
        condition_dropout=0.1,
        steps=1500,
        batch=128,
        optimiser=OptimiserConfig(lr=2e-2, warmup=100, decay="linear"),
        ema=EmaConfig(decay=0.985),
        every=EveryConfig(log=50, held_out=500, preview=1000, save=1000),
    )
