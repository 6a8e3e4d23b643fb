"""Networks trained elsewhere: what they mean by time, by their output and by no condition, said once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from rectiflow.base.condition import NULL_LABEL, Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.flow import Flow, expand
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Rectified
from rectiflow.flow.tabulated import Tabulated

Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Any]


@dataclass(frozen=True)
class Convention:
    """How a foreign network means what it is given and what it gives; the defaults are ours.

    Args:
        reverse: its time is 1 at data and 0 at noise.
        time_scale: its time is time_scale·t + time_offset, and never below 0; 1000 for many.
        time_offset: see `time_scale`.
        shift: s > 0; it is told s·t/(1+(s−1)t) in place of t; 1 is none.
        sign: −1 if it predicts the negative, as x − z where the velocity is z − x.
        factor: by t (float64 B), what its output is multiplied by besides; None is 1.
        null: its label of the null condition ∅; None if it has none.
    """

    reverse: bool = False
    time_scale: float = 1.0
    time_offset: float = 0.0
    shift: float = 1.0
    sign: float = 1.0
    factor: Callable[[Tensor], Tensor] | None = None
    null: int | None = None

    def time(self, t: Tensor) -> Tensor:
        """The network's own time, of the shape and dtype of t."""
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return ((1 - t if self.reverse else t) * self.time_scale + self.time_offset).clamp(min=0)


@final
class Foreign(nn.Module):
    """A foreign network as a `Flow` calls one: Flow(Foreign(network, Convention(reverse=True, sign=-1))).

    Of an output that is a tuple the first is taken, of one with an attribute `sample` that, and of one with twice the
    channels of the input, as models that also predict a variance have, the first half.

    Args:
        network: any module.
        convention: how it means its input and its output.
        call: how it is called, by (network, x_t, time, labels); by default network(x_t, time), with the labels (int64
            B, ∅ as the convention says) as a third argument where there are any. Text and the like go in here.
    """

    def __init__(self, network: nn.Module, convention: Convention | None = None, call: Call | None = None) -> None:
        super().__init__()
        self.network, self.convention, self.call = network, convention or Convention(), call or _call

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Its output in our sign, B×…, for x_t B×… and t float32 B.

        Raises:
            InputError: the null condition, of a network that has none, or an output of another shape.
        """
        value = self.call(self.network, x_t, self.convention.time(t), self._labels(condition, x_t))
        value = value.sample if hasattr(value, "sample") else value[0] if isinstance(value, tuple) else value
        if value.dim() > 1 and value.shape[1] == 2 * x_t.shape[1]:
            value = value.chunk(2, dim=1)[0]
        if value.shape != x_t.shape:
            raise InputError(f"the network gave {tuple(value.shape)} for x_t of {tuple(x_t.shape)}.")
        value = self.convention.sign * value
        return (
            value if self.convention.factor is None else expand(self.convention.factor(t.double().cpu()), value) * value
        )

    def _labels(self, condition: Condition | None, x_t: Tensor) -> Tensor | None:
        null = self.convention.null
        if condition is None:
            return None if null is None else torch.full((len(x_t),), null, device=x_t.device)
        absent = condition.labels == NULL_LABEL
        if null is None and bool(absent.any()):
            raise InputError(
                "this network has no null condition, or its convention does not say which; use guidance 0."
            )
        return torch.where(absent, null or 0, condition.labels)


def _call(network: nn.Module, x_t: Tensor, time: Tensor, labels: Tensor | None) -> Any:
    return network(x_t, time) if labels is None else network(x_t, time, labels)


def from_diffusers(network: nn.Module, scheduler: Any, call: Call | None = None, null: int | None = None) -> Flow:
    """The flow of a network and the scheduler that diffusers keeps beside it.

    A network of noise, of data or of v = αz − βx, on a table of alphas_cumprod, step i = 0 … T−1 at t = (i+1)/T; or of
    z − x on the rectified path, told T·t.

    Args:
        network: as UNet2DModel or DiTTransformer2DModel; called with (x_t, timestep) and labels.
        scheduler: whose settings say how it was trained; how to sample is said to `sample`.
        call: see `Foreign`, as for a text encoder's states.
        null: see `Convention`.

    Raises:
        InputError: a scheduler of another kind.
    """
    config = scheduler.config
    count = config.get("num_train_timesteps", 1000)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None:
        path = Tabulated(table)
        kinds = {"epsilon": Prediction.NOISE, "sample": Prediction.DATA, "v_prediction": Prediction.VELOCITY}
        kind = config.get("prediction_type", "epsilon")
        if kind in kinds:
            # αz − βx is the velocity by the angle atan(β/α).
            factor = path.angle_dot if kind == "v_prediction" else None
            convention = Convention(time_scale=count, time_offset=-1.0, factor=factor, null=null)
            return Flow(Foreign(network, convention, call), path, kinds[kind])
    elif "shift" in config:
        return Flow(Foreign(network, Convention(time_scale=count, null=null), call), Rectified(), shift=config["shift"])
    raise InputError(
        f"{type(scheduler).__name__} says neither alphas_cumprod with a known prediction_type nor a flow's shift; "
        "wrap the network by hand: Flow(Foreign(network, Convention(…)), schedule, prediction)."
    )
