"""Plots of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor


def plot_loss(loss: dict[str, Any], path: Path) -> None:
    """Training and held-out loss against the share of noise."""
    figure, axis = _figure()
    for name, label in (("train", "training pictures"), ("held_out", "held-out pictures")):
        axis.plot(loss["noise_share"], loss[name], marker="o", label=label)
    axis.set(xlabel="share of noise β/(α+β)", ylabel="flow-matching loss", ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=90)


def plot_nearest(made: Tensor, held_out: Tensor, threshold: float, path: Path) -> None:
    """Distances to the nearest training picture: of samples, of held-out pictures, and where copies are flagged."""
    figure, axis = _figure()
    top = float(max(made.max(), held_out.max()))
    for values, label in ((made, "samples"), (held_out, "held-out pictures")):
        axis.hist(values.numpy(), bins=40, range=(0, top), density=True, alpha=0.5, label=label)
    axis.axvline(threshold, color="black", linestyle="--", label="flagged below")
    axis.set(xlabel="distance to the nearest training picture", yticks=[])
    axis.legend()
    figure.savefig(path, dpi=90)


def plot_cost(rows: Sequence[dict[str, Any]], score: str, title: str, path: Path) -> None:
    """A score against the evaluations of the network, a line for each way of sampling; both axes logarithmic."""
    figure, axis = _figure(7.5, 4.6)
    for number, line in enumerate(dict.fromkeys(row["line"] for row in rows)):
        mine = sorted((row for row in rows if row["line"] == line), key=lambda row: row["evaluations"])
        x, y = [row["evaluations"] for row in mine], [row[score]["value"] for row in mine]
        below = [max(0.0, row[score]["value"] - row[score]["low"]) for row in mine]
        above = [max(0.0, row[score]["high"] - row[score]["value"]) for row in mine]
        style = {"color": f"C{number % 10}", "marker": "os^v"[number // 10 % 4], "capsize": 2, "label": line}
        axis.errorbar(x, y, yerr=[below, above], **style)
    axis.set(xscale="log", yscale="log", xlabel="evaluations of the network for one picture", ylabel=title)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(ScalarFormatter())
        side.set_minor_formatter(ScalarFormatter())
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def _figure(width: float = 6, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
