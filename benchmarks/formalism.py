"""The pictures of docs/formalism.md, from exact fields of a ring of eight Gaussians: python benchmarks/formalism.py"""

import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import rectiflow as rf
from rectiflow.flow.schedule import Schedule

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parent.parent / "docs"
RADIUS, STD = math.sqrt(2 * (1 - 0.2**2)), 0.2
LIMIT = 2.6
SCHEDULES: dict[str, Schedule] = {
    "rectified": rf.Rectified(),
    "trig": rf.Trig(),
    "polynomial, n=2": rf.Polynomial(2.0),
    "vp-linear": rf.VPLinear(),
    "ve": rf.VE(),
}


def ring(schedule: Schedule | None = None) -> rf.GaussianMixtureFlow:
    """Problem A: eight Gaussians on a circle; label 0 is two neighbours, label 1 the rest."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return rf.GaussianMixtureFlow(means, STD, classes=[[0, 1], [2, 3, 4, 5, 6, 7]], schedule=schedule)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def save(figure: "pyplot.Figure", name: str) -> None:
    figure.tight_layout()
    figure.savefig(DOCS / f"{name}.png", dpi=75)
    pyplot.close(figure)
    print(f"wrote {DOCS / name}.png")


def plane(axis: "pyplot.Axes", title: str) -> None:
    axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title)


def paths() -> None:
    """α, β of each schedule, and its log-SNR."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    t = torch.linspace(0, 1, 400, dtype=torch.float64)
    for number, (name, path) in enumerate(SCHEDULES.items()):
        inside = t.clamp(path.t_min, path.t_max)
        at = path.at(inside)
        if name != "ve":
            left.plot(t, at.alpha, color=f"C{number}", label=f"{name}: α, β (dashed)")
            left.plot(t, at.beta, color=f"C{number}", linestyle="--")
        right.plot(t, path.log_snr(inside).clamp(-14, 14), color=f"C{number}", label=name)
    left.set(xlabel="t", title="α(t) and β(t); of ve, α = 1 and β = 0.002 … 80")
    right.set(xlabel="t", title="log-SNR λ(t), cut at ±14")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    save(figure, "paths")


def trajectories() -> None:
    """The same noise carried to data along three paths: at one log-SNR the same points, but for a scale."""
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.6))
    for axis, name in zip(axes, ("rectified", "trig", "vp-linear"), strict=True):
        flow, z = ring(SCHEDULES[name]), draws(60)
        grid = rf.time_grid(200, kind="log-snr", schedule=flow.schedule)
        states = list(rf.trajectory(flow, flow.schedule.prior_std * z, grid, rf.solver("heun")))
        line = torch.stack([state.x_t for state in states])
        axis.plot(*line.unbind(-1), color="C0", linewidth=0.5, alpha=0.7)
        axis.scatter(*line[0].T, s=4, color="C7", zorder=3)
        axis.scatter(*line[-1].T, s=5, color="C3", zorder=3)
        plane(axis, f"{name}: noise (grey) to data (red)")
    save(figure, "trajectories")


def score_field() -> None:
    """p_t and the score at three times; arrows are cut at a length of 6."""
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.6))
    flow = ring()
    fine, coarse = (torch.linspace(-LIMIT, LIMIT, count, dtype=torch.float64) for count in (120, 17))
    for axis, t in zip(axes, (0.8, 0.4, 0.1), strict=True):
        time = torch.tensor(t, dtype=torch.float64)
        x, y = torch.meshgrid(fine, fine, indexing="xy")
        density = flow.log_density(torch.stack([x.flatten(), y.flatten()], 1), time).reshape(x.shape)
        axis.contourf(x, y, density.exp(), levels=20, cmap="Blues")
        x, y = torch.meshgrid(coarse, coarse, indexing="xy")
        points = torch.stack([x.flatten(), y.flatten()], 1)
        score = flow(points, time).score
        length = score.norm(dim=1, keepdim=True)
        arrows = score / length * length.clamp(max=6)
        axis.quiver(*points.T, *arrows.T, scale=90, width=0.003)
        plane(axis, f"t = {t}")
    save(figure, "score")


def spread() -> None:
    """One draw of noise, carried to data 60 times: the ODE and three strengths of the SDE with the same marginals."""
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3.4))
    flow, z = ring(), torch.tensor([[0.9, 0.5]], dtype=torch.float64).repeat(60, 1)
    grid, noise = rf.time_grid(300), rf.Noise(0, torch.arange(60))
    for axis, scale in zip(axes, (0.0, 0.05, 0.3, 1.0), strict=True):
        states = list(rf.trajectory(flow, z, grid, rf.solver(f"sde:epsilon=t,scale={scale}", noise)))
        lines = torch.stack([state.x_t for state in states])
        axis.plot(*lines.unbind(-1), color="C0", linewidth=0.3, alpha=0.5)
        axis.scatter(*flow.means.T, s=60, facecolors="none", edgecolors="C7")
        axis.scatter(*lines[-1].T, s=5, color="C3", zorder=3)
        plane(axis, "the ODE, ε = 0" if not scale else f"ε = {scale:g}·t")
    save(figure, "spread")


def guidance() -> None:
    """Samples of label 0 (two neighbouring modes) at four weights, fields exact."""
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3.4))
    flow, z = ring(), draws(600)
    condition = rf.Condition(torch.zeros(len(z), dtype=torch.int64))
    for axis, w in zip(axes, (0.0, 1.0, 3.0, 8.0), strict=True):
        made = rf.sample(flow, z, rf.solver("ab2"), 100, condition, rf.ClassifierFree(w))
        axis.scatter(*flow.means.T, s=60, facecolors="none", edgecolors="C7")
        axis.scatter(*made.T, s=2)
        plane(axis, f"label 0, w = {w:g}")
    save(figure, "guidance")


if __name__ == "__main__":
    paths()
    trajectories()
    score_field()
    spread()
    guidance()
