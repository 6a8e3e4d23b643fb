"""Rectiflow: train, sample and understand your own generative model, with rectified flow at its centre.

Names are imported on first use, so that `import rectiflow` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectiflow.base.condition import Condition as Condition
    from rectiflow.base.errors import InputError as InputError
    from rectiflow.base.randomness import Key as Key
    from rectiflow.flow.exact import GaussianFlow as GaussianFlow
    from rectiflow.flow.exact import GaussianMixtureFlow as GaussianMixtureFlow
    from rectiflow.flow.flow import Estimate as Estimate
    from rectiflow.flow.flow import Flow as Flow
    from rectiflow.flow.foreign import Convention as Convention
    from rectiflow.flow.foreign import Foreign as Foreign
    from rectiflow.flow.foreign import from_diffusers as from_diffusers
    from rectiflow.flow.loss import flow_matching_loss as flow_matching_loss
    from rectiflow.flow.schedule import VE as VE
    from rectiflow.flow.schedule import Polynomial as Polynomial
    from rectiflow.flow.schedule import Rectified as Rectified
    from rectiflow.flow.schedule import Trig as Trig
    from rectiflow.flow.schedule import VPLinear as VPLinear
    from rectiflow.flow.source import Gaussian as Gaussian
    from rectiflow.flow.weight import LossWeight as LossWeight
    from rectiflow.pipeline import Pipeline as Pipeline
    from rectiflow.request import Request as Request
    from rectiflow.sampling.grids import time_grid as time_grid
    from rectiflow.sampling.guidance import ClassifierFree as ClassifierFree
    from rectiflow.sampling.sample import log_probability as log_probability
    from rectiflow.sampling.sample import sample as sample
    from rectiflow.sampling.sample import trajectory as trajectory
    from rectiflow.sampling.solvers import solver as solver
    from rectiflow.sampling.stochastic import Noise as Noise

_HOMES = {
    "Condition": "base.condition",
    "InputError": "base.errors",
    "Key": "base.randomness",
    "GaussianFlow": "flow.exact",
    "GaussianMixtureFlow": "flow.exact",
    "Estimate": "flow.flow",
    "Flow": "flow.flow",
    "Convention": "flow.foreign",
    "Foreign": "flow.foreign",
    "from_diffusers": "flow.foreign",
    "flow_matching_loss": "flow.loss",
    "Polynomial": "flow.schedule",
    "Rectified": "flow.schedule",
    "Trig": "flow.schedule",
    "VE": "flow.schedule",
    "VPLinear": "flow.schedule",
    "Gaussian": "flow.source",
    "LossWeight": "flow.weight",
    "Pipeline": "pipeline",
    "Request": "request",
    "time_grid": "sampling.grids",
    "ClassifierFree": "sampling.guidance",
    "log_probability": "sampling.sample",
    "sample": "sampling.sample",
    "trajectory": "sampling.sample",
    "solver": "sampling.solvers",
    "Noise": "sampling.stochastic",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rectiflow' has no attribute '{name}'")
    return getattr(import_module(f"rectiflow.{_HOMES[name]}"), name)
