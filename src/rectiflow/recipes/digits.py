"""Class-conditional rectified flow on scikit-learn's handwritten digits, in about two minutes on two cores."""

from rectiflow.data.config import DataConfig
from rectiflow.networks.config import DiTConfig
from rectiflow.training.config import RunConfig


def digits() -> RunConfig:
    """Handwritten digits, 8×8, ten classes."""
    return RunConfig(
        recipe="digits",
        data=DataConfig(set="digits"),
        network=DiTConfig(channels=1, classes=10, patch=2, width=64, depth=5, heads=4, modulation="shared"),
    )
