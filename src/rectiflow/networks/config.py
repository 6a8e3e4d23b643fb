"""Settings and presets of networks. Never imports torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.base.errors import unknown

_SIZES = {
    "tiny": {"width": 128, "depth": 6, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
PRESETS = {f"{size}/{patch}": {**shape, "patch": patch} for size, shape in _SIZES.items() for patch in (1, 2, 4, 8)}


class DiTConfig(Config):
    """A diffusion transformer (Peebles & Xie 2023) with RMSNorm, QK-norm, SwiGLU and axial RoPE.

    Args:
        kind: "dit".
        channels: C of its input and output.
        classes: number of labels; 0 is unconditional.
        patch: side of a patch in pixels; it must divide height and width.
        width: D, features of a token.
        depth: number of blocks.
        heads: attention heads; the width of a head must be a multiple of 4.
        modulation: "block", each block turns the condition into its own shifts, scales and gates (adaLN-zero); or
            "shared", one map for all blocks and a bias in each, with about a third of the parameters less.
    """

    kind: Literal["dit"] = "dit"
    channels: int = Field(1, ge=1)
    classes: int = Field(0, ge=0)
    patch: int = Field(2, ge=1)
    width: int = Field(128, ge=4)
    depth: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    modulation: Literal["block", "shared"] = "block"

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} over {self.heads} heads must give a multiple of 4 each; "
                f"use a width that is a multiple of {4 * self.heads}"
            )
        return self


def expand_preset(network: Mapping[str, Any]) -> dict[str, Any]:
    """Put the numbers of `preset` in the place of its name; numbers that stand beside it win.

    Args:
        network: settings of a network in one layer of configuration, perhaps with `preset`, such as "S/2".

    Raises:
        InputError: no such preset.
    """
    settings = dict(network)
    name = settings.pop("preset", None)
    if name is None:
        return settings
    if name not in PRESETS:
        raise unknown("preset", str(name), PRESETS)
    return {**PRESETS[name], **settings}
