"""Names of solvers, for settings. Never imports torch."""

from typing import Literal

SolverName = Literal[
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "ab2",
    "ab2-pec",
    "dpm++2m",
    "ab3",
    "unipc2",
    "unipc3",
    "exp-ab2",
    "exp-ab3",
    "trig-ab1",
    "trig-ab2",
    "rk45",
    "sde",
    "ddpm",
    "sde-dpm++2m",
    "edm",
    "pc",
    "fast",
]
