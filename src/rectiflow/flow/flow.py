"""A flow: a network together with what its input and its output mean."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.prediction import Prediction, conversion
from rectiflow.flow.schedule import Rectified, Schedule, schedule
from rectiflow.flow.source import Gaussian, Source, source
from rectiflow.flow.times import size_shift


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient per sample (B or scalar, float64) in the shape, dtype and device of `like` (B×…)."""
    return coefficient.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Estimate:
    """What is known at (x_t, t): one predicted quantity and, by the schedule, all the others.

    Args:
        x_t: B×….
        t: float64 B or scalar, in [0, 1].
        value: B×…, what was predicted.
        prediction: what `value` is.
        schedule: the path.
        no_score: why the score is not valid here; empty if it is.
        average_to: the time s of an average velocity from t to s; None if `value` is instantaneous.
        memory: what the guidance that made it wants to remember if its step is accepted, B×…; None is nothing.
    """

    x_t: Tensor
    t: Tensor
    value: Tensor
    prediction: Prediction
    schedule: Schedule
    no_score: str = ""
    average_to: float | None = None
    memory: Tensor | None = None

    def get(self, want: Prediction) -> Tensor:
        """The quantity `want`, B×….

        Raises:
            InputError: it is not valid here, or not finite at this t.
        """
        if want is self.prediction:
            return self.value
        if self.average_to is not None:
            raise InputError(f"an average velocity from t to s={self.average_to} gives no {want}; leave out s.")
        if want is Prediction.SCORE and self.no_score:
            raise InputError(f"no score: {self.no_score}.")
        at = self.schedule.at(self.t)
        if want is Prediction.SCORE and bool((at.beta == 0).any()):
            raise InputError("the score is infinite at t=0; ask for it at t > 0.")
        from_x_t, from_value = conversion(self.prediction, want, at)
        return expand(from_x_t, self.x_t) * self.x_t + expand(from_value, self.x_t) * self.value

    @property
    def velocity(self) -> Tensor:
        """The posterior mean of v = α′x + β′z given x_t."""
        return self.get(Prediction.VELOCITY)

    @property
    def noise(self) -> Tensor:
        """ẑ, the posterior mean of z given x_t."""
        return self.get(Prediction.NOISE)

    @property
    def data(self) -> Tensor:
        """x̂, the posterior mean of x given x_t."""
        return self.get(Prediction.DATA)

    @property
    def score(self) -> Tensor:
        """∇log p_t(x_t) = −ẑ/β."""
        return self.get(Prediction.SCORE)

    def select(self, index: Tensor | slice) -> Self:
        """The samples at `index`."""
        t = self.t if self.t.dim() == 0 else self.t[index]
        return replace(self, x_t=self.x_t[index], t=t, value=self.value[index])


class AbstractFlow(ABC):
    """Anything that estimates the velocity at (x_t, t): a trained flow or an exact oracle.

    Attributes:
        schedule: the path.
        source: what z is drawn from.
        shift: time shift of its sampling grid; 1 is none.
        shift_by_size: whether the shift grows with the number of elements of a sample.
    """

    schedule: Schedule
    source: Source
    shift: float = 1.0
    shift_by_size: bool = False

    def shift_for(self, shape: Sequence[int]) -> float:
        """The time shift s for samples of a shape (without the batch), in training and sampling alike; 1 is none."""
        return self.shift * (size_shift(shape) if self.shift_by_size else 1.0)

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """Estimate at x_t (B×…) and t (B or scalar, in [0, 1]) given `condition` (None: the null condition).

        With `s`, the average velocity from t to s.

        Raises:
            InputError: `s` is given and this flow knows no average velocity.
        """

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """As `estimate`."""
        return self.estimate(x_t, t, condition, s)


@final
class Flow(nn.Module, AbstractFlow):
    """A network with its schedule and prediction.

    Args:
        network: called as network(x_t, t, condition) with x_t B×…, t float32 B, condition `Condition` or None; returns
            a tensor of the shape of x_t.
        schedule: the path; rectified if left out.
        prediction: what the network's output means.
        source: what z is drawn from; N(0, I) if left out.
        shift: s > 0 of the time shift shared by training and sampling; 1 is none.
        sigma_data: σ_d, assumed deviation of the data. Where the schedule is `scaled`, the network is given
            x_t/√(α²σ_d²+β²), and its output is multiplied by √(a²σ_d²+b²), the root mean square of a prediction whose
            row over (x, z) is (a, b).
        one_step: whether the network gives the average velocity from t = 1 to t = 0 and nothing else.
        shift_by_size: whether s is multiplied by max(1, √(d/4096)), d the elements of a sample; see `shift_for`.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule | None = None,
        prediction: Prediction | str = Prediction.VELOCITY,
        source: Source | None = None,
        shift: float = 1.0,
        sigma_data: float = 0.5,
        one_step: bool = False,
        shift_by_size: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule or Rectified()
        self.prediction = Prediction(prediction)
        self.source = source or Gaussian()
        self.shift = shift
        self.sigma_data = sigma_data
        self.one_step = one_step
        self.shift_by_size = shift_by_size

    @classmethod
    def build(cls, network: nn.Module, config: FlowConfig) -> Self:
        """The flow of a network under saved conventions."""
        path, z = schedule(config), source(config)
        shift = config.shift, config.sigma_data, config.one_step, config.shift_by_size
        return cls(network, path, config.prediction, z, *shift)

    def alike(self, network: nn.Module | None = None, source: Source | None = None) -> "Flow":
        """A flow of the same conventions around another network, from another source, or both."""
        network, z = network or self.network, source or self.source
        args = self.prediction, z, self.shift, self.sigma_data, self.one_step, self.shift_by_size
        return Flow(network, self.schedule, *args)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """Estimate at x_t (B×…) and t (B or scalar); see `AbstractFlow.estimate`."""
        if self.one_step and not bool((torch.as_tensor(t) == 1).all()):
            raise InputError("a one-step model knows only the way from t=1 to t=0; sample it in one step.")
        if s is not None and not (self.one_step and s == 0):
            raise InputError("this network knows one time only and gives no average velocity; leave out s.")
        t = torch.as_tensor(t, dtype=torch.float64).cpu().clamp(*self.prediction.t_range(self.schedule))
        times = t.float().to(x_t.device).expand(len(x_t))
        if self.schedule.scaled:
            at = self.schedule.at(t)
            row = self.prediction.row(at)
            value = self.network(x_t / expand(self._size(at.alpha, at.beta), x_t), times, condition)
            value = value.to(x_t.dtype) * expand(self._size(*row), x_t)
        else:
            value = self.network(x_t, times, condition)
        average_to = 0.0 if self.one_step else None
        return Estimate(x_t, t, value.to(x_t.dtype), self.prediction, self.schedule, self.source.no_score, average_to)

    def estimate(self, x_t: Tensor, t: Tensor, condition: Condition | None = None, s: float | None = None) -> Estimate:
        """As `forward`, through the module's hooks."""
        return self(x_t, t, condition, s)

    def _size(self, a: Tensor, b: Tensor) -> Tensor:
        """Root mean square of a·x + b·z."""
        return (a**2 * self.sigma_data**2 + b**2).sqrt()
