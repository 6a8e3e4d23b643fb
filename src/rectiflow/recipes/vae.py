"""A variational autoencoder of the digits recipe's network: its prior, sampled, shows why a flow is needed."""

from rectiflow.flow.config import FlowConfig
from rectiflow.recipes.digits import digits
from rectiflow.training.config import OptimiserConfig
from rectiflow.training.generator_config import RunConfig


def vae() -> RunConfig:
    """Handwritten digits by a decoder of z ~ N(0, I), trained with an encoder on the variational bound."""
    return digits().model_copy(
        update={
            "recipe": "vae",
            "objective": "vae",
            "flow": FlowConfig(one_step=True),
            "condition_dropout": 0.0,
            "optimiser": OptimiserConfig(lr=5e-3, warmup=100, decay="linear"),
        }
    )
