"""The average of any length, put together after the training from snapshots of two power averages.

The profile p(τ; t, γ) that is asked for is met by a sum Σ xᵢ·p(τ; tᵢ, γᵢ) over the snapshots, by least squares in τ
(Karras et al. 2024, section 3.2), with Σ xᵢ = 1 so that weights that stand still stay what they are. The weights are
then the same sum of the snapshots' weights.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_aside
from rectiflow.training.ema import exponent

FOLDER = "averages"
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class PostHoc:
    """An average put together from snapshots.

    Args:
        weights: the state of the module that was trained.
        step: the step that the average is of.
        residual: how far its profile is from the one asked for, ‖p − Σ xᵢpᵢ‖ / ‖p‖ in L².
    """

    weights: dict[str, Tensor]
    step: int
    residual: float


def save_snapshot(run: Path, step: int, length: float, module: nn.Module) -> None:
    """Keep the average of length σ_rel after `step` steps in the run's folder `averages/`, whole or not at all.

    Raises:
        InputError: the disk is full or read-only.
    """

    def fill(aside: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        # `save_file` writes beside its file under a name of its own, which whoever is killed then leaves there.
        aside.write_bytes(save(weights, metadata={"step": str(step), "length": str(length)}))

    write_aside(run / FOLDER / f"step-{step:08d}-length-{length}.safetensors", fill)


def forget_snapshots(run: Path, after: int) -> None:
    """Remove those of later steps than the one that a run goes on from: they are taken again, or are of no step of it.

    What cannot be removed stays.
    """
    for path in (run / FOLDER).glob("step-*.safetensors"):
        step = path.name.removeprefix("step-")[:8]
        if step.isdecimal() and int(step) > after:
            with suppress(OSError):
                path.unlink()


def post_hoc(run: Path, length: float, step: int | None = None) -> PostHoc:
    """The average of length σ_rel, from the snapshots of a run.

    Args:
        run: a run folder.
        length: σ_rel, in (0, 1/√12); the residual tells how well the snapshots give it.
        step: the step to take it of; the last one that has a snapshot if left out.

    Raises:
        InputError: the run has no snapshots up to that step, one of them cannot be read, or no average has that length.
    """
    if not 0 < length < 12**-0.5:
        raise InputError(f"expected a length between 0 and 1/√12 = {12**-0.5:.4f}, received {length}.")
    found = [(path, *_about(path)) for path in sorted((run / FOLDER).glob("*.safetensors"))]
    found = [snapshot for snapshot in found if step is None or snapshot[1] <= step]
    if not found:
        raise InputError(
            f"{run} has no snapshots of power averages{'' if step is None else f' up to step {step}'}; "
            "train with --set ema.kind=power every.average=100."
        )
    last = max(at for _, at, _ in found) if step is None else step
    shares, residual = coefficients([(at, exponent(tracked)) for _, at, tracked in found], (last, exponent(length)))
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for (path, _, _), share in zip(found, shares, strict=True):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                # What is no number, such as a count, is the newest snapshot's.
                total[name] = total.get(name, 0) + share * tensor.double() if tensor.is_floating_point() else tensor
                dtypes[name] = tensor.dtype
    return PostHoc({name: tensor.to(dtypes[name]) for name, tensor in total.items()}, last, residual)


def coefficients(tracked: list[tuple[float, float]], wanted: tuple[float, float]) -> tuple[list[float], float]:
    """The xᵢ of Σ xᵢ·p(τ; tᵢ, γᵢ) ≈ p(τ; t, γ), and the relative residual.

    Args:
        tracked: (tᵢ, γᵢ) of each snapshot.
        wanted: (t, γ).
    """
    t, gamma = (np.array(values, dtype=np.float64) for values in zip(*tracked, strict=True))
    goal = (np.array(wanted[0], dtype=np.float64), np.array(wanted[1], dtype=np.float64))
    norm = np.sqrt(_product(t, gamma, t, gamma))  # profiles are scaled to unit length: the system is better conditioned
    gram = _product(t[:, None], gamma[:, None], t, gamma) / (norm[:, None] * norm)
    target = _product(t, gamma, *goal) / norm
    system = np.block([[gram, 1 / norm[:, None]], [1 / norm, np.zeros((1, 1))]])
    scaled = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    whole = float(_product(*goal, *goal))
    left = whole - 2 * scaled @ target + scaled @ gram @ scaled
    return list(map(float, scaled / norm)), float(np.sqrt(max(left, 0.0) / whole))


def _product(t_a: _Array, gamma_a: _Array, t_b: _Array, gamma_b: _Array) -> _Array:
    """∫ p(τ; t_a, γ_a)·p(τ; t_b, γ_b) dτ over 0 … min(t_a, t_b)."""
    least = np.minimum(t_a, t_b)
    powers = (least / t_a) ** gamma_a * (least / t_b) ** gamma_b * least / (t_a * t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers


def _about(path: Path) -> tuple[int, float]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        return int(about["step"]), float(about["length"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no snapshot that can be read; remove it. ({type(error).__name__})") from error
