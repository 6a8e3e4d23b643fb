"""The digits as a chain of 1,000 latent variables: denoising diffusion by the discrete variational bound."""

from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.recipes.digits import digits
from rectiflow.training.generator_config import PreviewConfig, RunConfig


def ddpm() -> RunConfig:
    """Noise prediction on DDPM's own path and steps (Ho et al. 2020), with each step of the bound weighed as it counts.

    `weight.kind=noise` is their "simple" loss. Everything else is as for the digits.
    """
    return digits().model_copy(
        update={
            "recipe": "ddpm",
            "flow": FlowConfig(schedule="vp-linear", prediction="noise"),
            "times": TimesConfig(density="discrete", count=1000),
            "weight": WeightConfig(kind="elbo"),
            "preview": PreviewConfig(),
        }
    )
