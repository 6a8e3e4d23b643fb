"""The plot of adherence and Fréchet distance against guidance."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LINES = ("place", "colour", "digit", "direction", "speed", "identity", "whole")
_PARTS = {"seen": "seen combinations", "held_out": "held-out combinations"}


def plot_adherence(result: dict[str, Any], path: Path) -> None:
    """What `sweep` or `clip_sweep` found: shares with their standard errors for seen and held-out combinations, and the
    distance.

    Dashed: the ceiling, real ones of held-out writers. Dotted: real ones of the training writers. The grey line is the
    best w.
    """
    rows = result["rows"]
    weights = [row["w"] for row in rows]
    parts = [part for part in _PARTS if rows[0][part]]
    figure = Figure(figsize=(4.2 * (len(parts) + 1), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(parts) + 1)
    for part, axis in zip(parts, axes, strict=False):
        for number, name in enumerate(name for name in _LINES if name in rows[0][part]):
            shares = [row[part][name] for row in rows]
            values, errors = [share["value"] for share in shares], [share["error"] for share in shares]
            label = "whole prompt" if name == "whole" else name
            axis.errorbar(weights, values, yerr=errors, color=f"C{number}", marker="o", capsize=2, label=label)
            for reference, style in (("ceiling", "--"), ("imitation", ":")):
                axis.axhline(result[reference][part][name]["value"], color=f"C{number}", linestyle=style, linewidth=1)
        axis.set(title=_PARTS[part], xlabel="guidance strength w", ylabel="share that is right", ylim=(0, 1.03))
    axes[0].plot([], [], "k--", linewidth=1, label="real, held-out writers")
    axes[0].plot([], [], "k:", linewidth=1, label="real, training writers")
    axes[0].legend(fontsize=7)
    axes[-1].plot(weights, [row["frechet"] for row in rows], color="black", marker="o")
    axes[-1].set(xlabel="guidance strength w", ylabel="Fréchet distance", ylim=(0, None))
    for axis in axes:
        axis.axvline(result["best_w"], color="black", alpha=0.15, linewidth=4, zorder=0)
    figure.savefig(path, dpi=90)
