"""A generator against a critic, both of the digits recipe's network."""

from rectiflow.flow.config import FlowConfig
from rectiflow.recipes.digits import digits
from rectiflow.training.config import OptimiserConfig
from rectiflow.training.generator_config import RunConfig


def gan() -> RunConfig:
    """Handwritten digits by a generator of one step, trained against a critic of its own size."""
    return digits().model_copy(
        update={
            "recipe": "gan",
            "objective": "gan",
            "flow": FlowConfig(one_step=True),
            "condition_dropout": 0.0,
            "optimiser": OptimiserConfig(lr=2e-3, betas=(0.0, 0.99), warmup=100, decay="linear"),
        }
    )
