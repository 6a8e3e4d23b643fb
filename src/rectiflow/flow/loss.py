"""The flow-matching loss: mean squared error of the velocity."""

from collections.abc import Callable

from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.flow.flow import Flow, expand
from rectiflow.flow.prediction import Prediction, conversion


def flow_matching_loss(
    flow: Flow,
    x: Tensor,
    t: Tensor,
    z: Tensor,
    condition: Condition | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """c(t)·‖v − v̂(x_t, t)‖² averaged over dimensions, B; x_t = α(t)x + β(t)z, v = α′x + β′z.

    Whatever the network predicts, the error is that of its velocity, by v − v̂ = k·(p − p̂) with k the coefficient of
    the conversion (W/α for noise, −W/β for data), k held within 0.05 of an end where it diverges (Li & He 2025).

    Args:
        flow: the flow to train.
        x: clean data, B×….
        t: times, float64 B in [0, 1]; moved into the range of the schedule and the prediction.
        z: draws of the flow's source, B×….
        condition: B conditions, or None.
        weight: c, such as a `LossWeight`; 1 if left out. It is asked at the t at which k is held.
    """
    low, high = flow.prediction.t_range(flow.schedule)
    t = t.double().clamp(low, high)
    at = flow.schedule.at(t)
    x_t = expand(at.alpha, x) * x + expand(at.beta, x) * z
    from_x, from_z = flow.prediction.row(at)
    target = expand(from_x, x) * x + expand(from_z, x) * z
    error = ((flow(x_t, t, condition).value - target) ** 2).flatten(1).mean(1)
    held = t.clamp(*flow.prediction.loss_t_range(flow.schedule))
    factor = conversion(flow.prediction, Prediction.VELOCITY, flow.schedule.at(held)).from_value ** 2
    if weight is not None:
        factor = factor * weight(held)
    return factor.to(error) * error
