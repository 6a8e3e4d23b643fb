"""A flow on another path than it was trained on, by equal log-SNR."""

from typing import final

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.flow import AbstractFlow, Estimate, expand
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import Schedule


@final
class OnSchedule(AbstractFlow):
    """The same coupling on the path x̄_r = ᾱ(r)x + β̄(r)z: x̄_r = c·x_t at the t of equal log-SNR.

    (x̂, ẑ) of the flow at (x̄_r/c, t) give v̄ = ᾱ′x̂ + β̄′ẑ, with no derivative of t by r. With c = √((ᾱ²+β̄²)/(α²+β²)),
    which is β̄/β and ᾱ/α where both are sound. A log-SNR outside the flow's own range is taken for its nearer end: so
    the new path is as good as the old one reaches.

    Args:
        flow: a flow of instantaneous estimates.
        schedule: the new path.
    """

    def __init__(self, flow: AbstractFlow, schedule: Schedule) -> None:
        self.flow, self.schedule, self.source = flow, schedule, flow.source

    def estimate(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """Estimate at x_t (B×…) and t (B or scalar) of the new path.

        Raises:
            InputError: `s` is given, or the flow knows only an average velocity.
        """
        if s is not None:
            raise InputError("a flow on another path gives no average velocity; leave out s.")
        t = torch.as_tensor(t, dtype=torch.float64)
        new, old_t = self.schedule.at(t), self.flow.schedule.time_of(self.schedule.log_snr(t))
        old = self.flow.schedule.at(old_t)
        scale = ((new.alpha**2 + new.beta**2) / (old.alpha**2 + old.beta**2)).sqrt()
        inner = self.flow.estimate(x_t / expand(scale, x_t), old_t, condition)
        value = expand(new.alpha_dot, x_t) * inner.data + expand(new.beta_dot, x_t) * inner.noise
        return Estimate(x_t, t, value, Prediction.VELOCITY, self.schedule, inner.no_score)
