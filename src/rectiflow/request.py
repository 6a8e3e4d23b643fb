"""Floor 3: what is asked of a model, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError

if TYPE_CHECKING:
    from rectiflow.pipeline import Pipeline

OVERLAP = 5  # frames that a clip takes over from the one that it goes on from


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
        picture: what is given of the pictures to make, N×C×h×w in [−1, 1], for a model that takes it: the j-th of each
            class or prompt takes the j-th of them, and after the last comes the first again. "low": h×w is H/f×W/f;
            "grey": one channel; "masked": a last channel more, 1 where the picture is given and 0 where it is hidden.
        null: what guidance leads away from: "picture", the same picture (or frames) without its label or text;
            "nothing", not even the picture; "auto": the same picture, for a model that has labels or texts and was
            trained for it.
        frames: T of the clips to make, 1 for single pictures, for a model of clips; None is what it was trained on.
        first: frames that the clips begin with, N×C×t×H×W in [−1, 1], t = 1+4m < T, for a model of clips that takes
            them, shared out as `picture` is; one makes a picture move, more go on from the end of another clip.
        last: the last frame of the clips, N×C×1×H×W, likewise.
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
    picture: Tensor | None = None
    null: Literal["auto", "picture", "nothing"] = "auto"
    frames: int | None = None
    first: Tensor | None = None
    last: Tensor | None = None

    @property
    def gives(self) -> bool:
        """Whether it gives anything beside the noise and what is to be said."""
        return not (self.picture is self.first is self.last is None)

    def given(self, index: Tensor) -> Tensor | None:
        """What is given of the pictures at `index` (int64 B) of the request; None if nothing is."""
        return self._shared_out(self.picture, index)

    def beginning(self, index: Tensor) -> Tensor | None:
        """The frames that the clips at `index` begin with, B×C×t×H×W; None if none are given."""
        return self._shared_out(self.first, index)

    def end(self, index: Tensor) -> Tensor | None:
        """The last frame of the clips at `index`, B×C×1×H×W; None if none is given."""
        return self._shared_out(self.last, index)

    def _shared_out(self, given: Tensor | None, index: Tensor) -> Tensor | None:
        return None if given is None else given[index % self.count % len(given)]

    def led_away(self, condition: Condition, negative: Condition | None, keeps: bool) -> Condition:
        """`condition` with what guidance leads away from.

        Args:
            condition: of B samples.
            negative: that of negative prompts; None is the null condition.
            keeps: whether the picture stays.
        """
        if negative is None and not keeps:
            return condition
        against, image = negative or condition.null(), condition.image
        if image is not None:
            against = replace(against, image=image if keeps else torch.zeros_like(image))
        return replace(condition, against=against)

    def check_prompts(self) -> None:
        """Nothing, if prompts are texts.

        Raises:
            InputError: one has bytes that are not UTF-8, as a shell may hand them on.
        """
        for prompt in (*self.prompts, self.negative):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"a prompt is not UTF-8 from its character {error.start + 1} on.") from error


@dataclass(frozen=True)
class Samples:
    """What a model made.

    Args:
        pixels: float32 N×C×H×W in about [−1, 1], or N×C×T×H×W from a model of clips.
        labels: int64 N; −1 for a model without classes.
        prompts: N of them; empty for a model that takes none.
    """

    pixels: Tensor
    labels: Tensor
    prompts: tuple[str, ...] = ()


def check_given_frames(request: Request, shape: tuple[int, ...]) -> None:
    """Nothing, if the frames that a request gives suit the pictures or clips that it asks for, of this shape.

    Raises:
        InputError: they do not.
    """
    for name, given in (("first", request.first), ("last", request.last)):
        if given is None:
            continue
        channels, frames, height, width = shape
        if frames == 1:
            raise InputError(f"{name}: a single picture is made, which is given no frames; leave it out.")
        if given.dim() != 5 or not len(given) or (given.shape[1], *given.shape[-2:]) != (channels, height, width):
            raise InputError(
                f"{name}: for clips of {height}×{width}, expected N×{channels}×t×{height}×{width}, received "
                f"{'×'.join(map(str, given.shape))}; set the size that it is of."
            )
        most = 1 if name == "last" else frames - 1
        if not 1 <= given.shape[2] <= most:
            raise InputError(f"{name}: {given.shape[2]} frames are given, expected 1 to {most} of a clip of {frames}.")
