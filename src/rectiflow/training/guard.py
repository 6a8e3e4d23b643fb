"""Steps that would harm a training: they are told from good ones before the optimiser moves."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import quantiles
from typing import final

import torch
from torch import Tensor

from rectiflow.training.config import GuardConfig

_KNOWN = 50
_REMEMBERED = 200


@final
class Guard:
    """Knows what losses have been of late, and what has gone wrong so far.

    A loss jumps if it lies `spike` interquartile ranges above the median of the last 200 good ones, and above twice
    that median; before 50 are known none does.

    Args:
        config: what is bad, and how much of it is borne.

    Attributes:
        in_a_row: bad steps since the last good one.
        detours: times that the run went back; each takes its data in another order.
        returned: step that it last went back to, as long as no good step has come since; else None.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.in_a_row, self.detours = 0, 0
        self.returned: int | None = None
        self._losses: deque[float] = deque(maxlen=_REMEMBERED)

    def complaint(self, loss: float, norm: float, main: bool = True) -> str:
        """What is wrong with a step of this loss and gradient norm, in words; empty if nothing is.

        Only the `main` loss of a step, that of its first turn, is asked whether it jumps.
        """
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"loss {loss:.4g} and gradient norm {norm:.4g}"
        if main and self.config.spike and len(self._losses) >= _KNOWN:
            low, median, high = quantiles(self._losses, n=4)
            if loss > median + self.config.spike * (high - low) and loss > 2 * abs(median):
                return f"loss {loss:.4g} far above {median:.4g}, the median of late"
        return ""

    def good(self, loss: float) -> None:
        """A step was taken."""
        self.in_a_row, self.returned = 0, None
        self._losses.append(loss)

    def bad(self) -> bool:
        """A step was not taken; whether that is enough of them to go back."""
        self.in_a_row += 1
        return self.in_a_row >= self.config.skips

    def forget(self) -> None:
        """Losses mean something else from now on."""
        self._losses.clear()

    def turn_back(self) -> bool:
        """The run goes back to where it was saved; whether it may."""
        self.in_a_row = 0
        self._losses.clear()
        self.detours += 1
        return self.detours <= self.config.rollbacks

    def state(self) -> dict[str, Tensor]:
        """What going on needs, in tensors of one shape whatever has been."""
        losses = torch.full((_REMEMBERED,), math.inf, dtype=torch.float64)
        losses[: len(self._losses)] = torch.tensor(self._losses, dtype=torch.float64)
        returned = -1 if self.returned is None else self.returned
        return {"counts": torch.tensor([self.in_a_row, self.detours, returned]), "losses": losses}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.in_a_row, self.detours, returned = state["counts"].tolist()
        self.returned = None if returned < 0 else returned
        self._losses = deque(state["losses"][state["losses"].isfinite()].tolist(), maxlen=_REMEMBERED)
