"""Floor 3: what is asked of a model, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from rectiflow.pipeline import Pipeline


@dataclass(frozen=True)
class Request:
    """What to sample: pictures class by class, picture i from noise that depends on (seed, i) alone.

    Args:
        classes: names of classes; empty for every class of the model.
        count: pictures of each class or prompt, ≥ 1.
        steps: N intervals from t = 1 to t = 0. A one-step model takes one, by Euler, whatever the request says.
        solver: "euler", "heun", "midpoint", "rk4", "ab2", "ab2-pec", "ab3", "dpm++2m", "unipc2", "unipc3", "exp-ab2",
            "exp-ab3", "trig-ab1", "trig-ab2"; "rk45", which ignores `steps`; or with noise at each step "sde", "ddpm",
            "sde-dpm++2m", "edm", "pc". Settings follow a colon: "rk45:tolerance=1e-6", "ddpm:eta=0.5",
            "sde:epsilon=t,scale=0.5", "edm:churn=0.2", "pc:snr=0.1". "fast" is the best few-step one: ab3, made safe.
        grid: "uniform" (with the model's shift), "karras" or "log-snr", or the times themselves, falling from 1 to 0,
            as numbers or as in "1,0.8,0.5,0"; `steps` then says nothing.
        schedule: path to sample on, by equal log-SNR, as for `FlowConfig`; empty is the model's own.
        guidance: w ≥ 0; 0 is none.
        guidance_kind: "cfg", "apg", "cfg-zero", "cfg++" (w is its λ, usually up to 1), "rescale" or "auto"; settings
            follow a colon, as in "apg:momentum=0,radius=2".
        guide: the weaker model of "auto", of the same shape and classes.
        interval: times (low, high) within which guidance acts; (0, 1) is all.
        seed: any integer.
        size: H, W in pixels; None is the size trained on.
        precision: of the network's arithmetic: "float32", or "bfloat16" by autocast; steps are taken in float32.
        source: pictures N×C×H×W in [−1, 1] to start from, for a model that starts from pictures: the j-th of each class
            starts from the j-th of them, and after the last comes the first again.
        prompts: sentences, for a model that takes them; an empty one asks for anything.
        negative: what guidance leads away from, in place of no prompt at all.
    """

    classes: Sequence[str | int] = ()
    count: int = 1
    steps: int = 50
    solver: str = "euler"
    grid: str | Sequence[float] = "uniform"
    schedule: str = ""
    guidance: float = 0.0
    guidance_kind: str = "cfg"
    guide: "Pipeline | None" = None
    interval: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    size: tuple[int, int] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    source: Tensor | None = None
    prompts: Sequence[str] = ()
    negative: str = ""


@dataclass(frozen=True)
class Samples:
    """Pictures, float32 N×C×H×W in about [−1, 1], and their labels (int64 N; −1 for an unconditional model)."""

    pixels: Tensor
    labels: Tensor
