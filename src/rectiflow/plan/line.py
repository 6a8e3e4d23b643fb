"""Memory and time against the batch: a straight line through what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Line:
    """y = base + slope·x.

    Args:
        base: y at 0.
        slope: per sample, at least 0.
    """

    base: float
    slope: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Self:
        """The line of least squares through points (x, y); level through a single one, or where it would fall."""
        x0, y0 = (sum(point[i] for point in points) / len(points) for i in (0, 1))
        spread = sum((x - x0) ** 2 for x, _ in points)
        slope = max(0.0, sum((x - x0) * (y - y0) for x, y in points) / spread) if spread else 0.0
        return cls(y0 - slope * x0, slope)

    def at(self, x: float) -> float:
        """y there."""
        return self.base + self.slope * x

    def where(self, y: float) -> float:
        """The x at which y is reached; infinite if the line is level."""
        return (y - self.base) / self.slope if self.slope else math.inf
