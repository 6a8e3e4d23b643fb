"""Names of solvers, for settings. Never imports torch."""

from typing import Literal

SolverName = Literal["euler", "heun", "midpoint", "rk4", "ab2", "ab2-pec", "dpm++2m"]
