"""What convention a model was really trained in, told from its errors on data.

At each log-SNR λ the mean of ‖z − ẑ‖² of a well-trained model is below that of the best linear estimate, which is in
closed form: for data of covariance S it is the trace of α²S/(α²S + β²). Under another convention than its own a model
is far above. Every quantity that it may predict has the same ratio to that bound, so conventions can be compared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from scipy.fft import dctn
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.coupling import coupling
from rectiflow.flow.flow import Flow, expand
from rectiflow.flow.foreign import Convention, Foreign
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.schedule import SCHEDULES, Schedule, schedule

LOG_SNRS = (-5.0, -3.0, -1.5, 0.0, 1.5, 3.0, 5.0)
SCALES = tuple(2.0 ** (k / 2) for k in range(-8, 9))
SHIFTS = (1 / 6, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 6.0)
TIME_SCALES = (1e-3, 1.0, 1e3)
_FEW, _BEAM = 16, 4
_DOUBTED = 0.95  # above it every pair of changes is tried
_DEPARTURE = 1.05
_WORSE = 1.1  # a mean ratio above it is no trained model's
_SURE, _BETTER = 0.95, 0.9  # what a finding's ratio must be below, itself and over the stated one's: ẑ = 0 may reach 1


@dataclass(frozen=True)
class Reading:
    """One way to read a model.

    Args:
        path: the schedule.
        path_name: its name.
        prediction: what the network gives, up to sign.
        convention: its time and sign, beside what is stated.
        scale: k: it knows data k·x + offset, where x is what is stated to be data.
        offset: see `scale`.
    """

    path: Schedule
    path_name: str
    prediction: Prediction
    convention: Convention = field(default_factory=Convention)
    scale: float = 1.0
    offset: float = 0.0

    def facts(self) -> dict[str, Any]:
        """What can differ, by the names that findings have."""
        c = self.convention
        return {
            "schedule": self.path_name,
            "prediction": self.prediction.value,
            "sign": "negative" if c.sign < 0 else "as stated",
            "time direction": "reversed" if c.reverse else "as stated",
            "time scale": c.time_scale,
            "shift": round(c.shift, 3),
            "data scale": round(self.scale, 3),
            "data offset": self.offset,
        }


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        stated: ratio of the error to the linear bound by log-SNR, as the model states its convention.
        found: the same of the best reading.
        findings: (name, stated, found) of all that differs; empty if the stated convention is the model's.
        explained: whether the best reading is as good as a trained model's.
        null: what is found of the null condition, or "" if nothing was asked.
        null_errs: whether it is stated to be trained, and of no use.
    """

    stated: dict[float, float]
    found: dict[float, float]
    findings: tuple[tuple[str, str, str], ...]
    explained: bool
    null: str = ""
    null_errs: bool = False

    @property
    def healthy(self) -> bool:
        """Whether the model is what it states."""
        return self.explained and not self.findings and not self.null_errs


@dataclass(frozen=True)
class Patient:
    """A model and data that it should know.

    Args:
        flow: under the stated convention.
        x: data B×… as the flow's network is to see them, of at least 16 samples.
        condition: their conditions; None for an unconditional model.
        config: the stated schedule's name and settings.
        seed: of the noise.
    """

    flow: Flow
    x: Tensor
    condition: Condition | None = None
    config: FlowConfig = field(default_factory=FlowConfig)
    seed: int = 0

    def select(self, index: slice) -> Self:
        """The same model with some of the data."""
        return replace(
            self, x=self.x[index], condition=None if self.condition is None else self.condition.select(index)
        )


def diagnose(patient: Patient, null_trained: bool | None = None) -> Diagnosis:
    """Compare what a model states with every other way to read it.

    Args:
        patient: the model and its data.
        null_trained: whether it is stated to know the null condition; None does not ask.

    Raises:
        InputError: too few data, or a model of one step.
    """
    if len(patient.x) < 16:
        raise InputError(f"the doctor needs at least 16 samples of the data, received {len(patient.x)}.")
    if patient.flow.one_step:
        raise InputError("a one-step model has no convention of time to find; sample it instead.")
    if patient.config.source == "pictures":
        raise InputError(
            "a bridge starts from pictures, for which there is no bound to compare with; sample it instead."
        )
    stated = Reading(patient.flow.schedule, _name(patient), patient.flow.prediction)
    best = _search(patient, stated)
    first, last = _ratios(patient, stated), _ratios(patient, best)
    if _mean(last) > min(_SURE, _BETTER * _mean(first)):
        best, last = stated, first
    differs = [(name, value, best.facts()[name]) for name, value in stated.facts().items()]
    findings = tuple((name, _word(old), _word(new)) for name, old, new in differs if old != new)
    null, errs = ("", False) if null_trained is None else _null(patient, best, null_trained)
    return Diagnosis(first, last, findings, _mean(last) <= _WORSE, null, errs)


def _name(patient: Patient) -> str:
    named = schedule(patient.config)
    return (
        patient.config.schedule if type(named) is type(patient.flow.schedule) else type(patient.flow.schedule).__name__
    )


def _search(patient: Patient, stated: Reading) -> Reading:
    """The best reading. One property may hide another: pairs are tried at once, and the best few changed once more."""
    few = patient.select(slice(0, _FEW))
    tried = [*_on_paths(patient, stated), *_timed(stated), *_scaled(stated)]
    if _mean(_ratios(patient, stated)) > _DOUBTED:
        dialects = _dialects(stated)
        tried += [other for dialect in dialects for other in (*_timed(dialect), *_scaled(dialect))]
    scores = {reading: _score(few, reading, stated) for reading in dict.fromkeys(tried)}
    beam = sorted(scores, key=lambda reading: scores[reading])[:_BEAM]
    for reading in beam:
        for other in (*_on_paths(patient, reading), *_timed(reading), *_scaled(reading)):
            if other not in scores:
                scores[other] = _score(few, other, stated)
    finalists = sorted(scores, key=lambda reading: scores[reading])[: 2 * _BEAM]
    best = min(finalists, key=lambda reading: _score(patient, reading, stated))
    if best.scale == 1:
        return best
    fine = [replace(best, scale=best.scale * 2 ** (k / 8)) for k in range(-3, 4)]
    return min(fine, key=lambda reading: _score(patient, reading, stated))


def _score(patient: Patient, reading: Reading, stated: Reading) -> float:
    """Mean ratio, a little worse for each departure from what is stated: the simplest explanation wins a tie."""
    departures = sum(a != b for a, b in zip(reading.facts().values(), stated.facts().values(), strict=True))
    return _mean(_ratios(patient, reading)) * _DEPARTURE**departures


def _dialects(reading: Reading) -> list[Reading]:
    """Every prediction, sign and direction of time."""
    return [
        replace(reading, prediction=what, convention=replace(reading.convention, reverse=reverse, sign=sign))
        for what in Prediction
        for reverse in (False, True)
        for sign in (1.0, -1.0)
    ]


def _on_paths(patient: Patient, reading: Reading) -> list[Reading]:
    """Every dialect on every path."""
    paths = {name: make(patient.config) for name, make in SCHEDULES.items() if name != "polynomial"}
    paths[reading.path_name] = reading.path
    return [replace(d, path=path, path_name=name) for name, path in paths.items() for d in _dialects(reading)]


def _timed(reading: Reading) -> list[Reading]:
    """Other scales and shifts of the time that the network is told."""
    return [
        replace(reading, convention=replace(reading.convention, time_scale=scale, shift=shift))
        for scale in TIME_SCALES
        for shift in SHIFTS
    ]


def _scaled(reading: Reading) -> list[Reading]:
    """Other scales of the data; pixels in [0, 1] or 0 … 255, and inverted ones."""
    affine = [(k, 0.0) for k in SCALES] + [(0.5, 0.5), (127.5, 127.5), (-1.0, 0.0)]
    return [replace(reading, scale=k, offset=c) for k, c in affine]


def _mean(ratios: dict[float, float]) -> float:
    """Geometric, so that one hopeless noise level does not hide the others."""
    return math.exp(sum(math.log(min(max(r, 1e-6), 1e6)) for r in ratios.values()) / len(ratios)) if ratios else 1e6


def _ratios(patient: Patient, reading: Reading, condition: Condition | None = None) -> dict[float, float]:
    """E‖z − ẑ‖² over the linear bound, by log-SNR, where the path has it."""
    x = reading.scale * patient.x + reading.offset
    low, high = reading.path.log_snr_range
    levels = [level for level in LOG_SNRS if low <= level <= high]
    rows = torch.arange(len(x)).repeat(len(levels))
    condition = patient.condition if condition is None else condition
    read = Foreign(
        patient.flow.network, reading.convention, _plain(None if condition is None else condition.select(rows))
    )
    flow = Flow(read, reading.path, reading.prediction, sigma_data=patient.flow.sigma_data)
    t = reading.path.time_of(torch.tensor(levels, dtype=torch.float64)).repeat_interleave(len(x))
    z = _source(patient)[rows]
    at = reading.path.at(t)
    x_t = expand(at.alpha, z) * x[rows] + expand(at.beta, z) * z
    with torch.no_grad():
        errors = (z - flow(x_t, t).noise).double().square().flatten(1).mean(1).reshape(len(levels), -1).mean(1)
    snr = torch.tensor(levels, dtype=torch.float64).exp()[:, None] * _spectrum(x)
    bounds = (snr / (snr + 1)).mean(1)
    return dict(zip(levels, (errors.cpu() / bounds).tolist(), strict=True))


def _source(patient: Patient) -> Tensor:
    """z as in training: of the flow's source, paired with the data as they were."""
    x, condition = patient.x, patient.condition
    z = patient.flow.source.sample(Key(patient.seed, "doctor"), torch.arange(len(x)), x.shape[1:]).to(x)
    return coupling(patient.config).pair(x, z, None if condition is None else condition.labels)


def _plain(condition: Condition | None) -> Callable[..., Any]:
    """The condition as it is, for a network of ours or within its own wrapper."""
    return lambda network, x_t, time, labels: network(x_t, time, condition)


def _spectrum(x: Tensor) -> Tensor:
    """Variances of the data in an orthonormal cosine basis, about their mean; float64, C·H·W or d."""
    centred = (x - x.mean(0)).double().cpu()
    axes = tuple(range(2, x.dim())) or (1,)
    return torch.from_numpy(dctn(centred.numpy(), axes=axes, norm="ortho")).square().sum(0).flatten() / (len(x) - 1)


def _null(patient: Patient, reading: Reading, stated: bool) -> tuple[str, bool]:
    """Whether the null condition can be used: it errs clearly less than wrong conditions do.

    A model that was never trained on it may pass, if its untrained null is like the average of its conditions.
    """
    if patient.condition is None:
        return "", False
    wrong = patient.condition.select(Key(patient.seed, "doctor wrong").permutation(len(patient.x)))
    given, null, other = (
        _mean(_ratios(patient, reading, c)) for c in (patient.condition, patient.condition.null(), wrong)
    )
    told = f"given {given:.2f}, null {null:.2f}, wrong {other:.2f} of the bound"
    if other < _BETTER**-1 * given:
        return f"not to be told, for wrong conditions do as well as right ones ({told})", False
    usable = null < given**0.25 * other**0.75
    return f"{'usable' if usable else 'of no use'} ({told})", stated and not usable


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
