"""Presets of networks, and settings laid over settings. Never imports torch."""

from collections.abc import Mapping
from typing import Any

from rectiflow.base.errors import InputError, unknown
from rectiflow.networks.config import KINDS

_PATCHES = (1, 2, 4, 8)
_DIT = {
    "tiny": {"width": 128, "depth": 6, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
_WIDTH_AND_DEPTH = {"tiny": (128, 6), "S": (384, 12), "B": (768, 12), "L": (1024, 24), "2B": (1536, 36)}
_UNET = {"S": 48, "M": 96, "L": 192}


def _two_streams(prefix: str) -> dict[str, dict[str, Any]]:
    return {
        f"{prefix}-{size}/{patch}": {"width": width, "depth": depth, "heads": width // 64, "patch": patch}
        for size, (width, depth) in _WIDTH_AND_DEPTH.items()
        for patch in _PATCHES
    }


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dit": {f"{size}/{patch}": {**shape, "patch": patch} for size, shape in _DIT.items() for patch in _PATCHES},
    "mmdit": _two_streams("mm"),
    "video": _two_streams("video"),
    "unet": {
        f"unet-{size}": {
            "width": width,
            "multipliers": (1, 2, 4),
            "blocks": 2,
            "attention": (2, 4),
            "heads": width // 16,
        }
        for size, width in _UNET.items()
    },
}


def overlay(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a network with a layer of configuration put over them.

    A preset stands for its numbers; numbers that stand beside it win. A layer that names another kind starts from that
    kind's defaults: only channels and classes are kept.

    Args:
        below: settings with their kind.
        layer: perhaps with `kind` or `preset`, such as "S/2".

    Raises:
        InputError: no such kind, or no such preset of this kind.
    """
    kind = layer.get("kind", below["kind"])
    if str(kind) not in KINDS:
        raise unknown("network.kind", str(kind), KINDS)
    inputs = ("channels", "classes")
    kept = dict(below) if kind == below["kind"] else {name: below.get(name) for name in inputs}
    settings = dict(layer)
    name = settings.pop("preset", None)
    return {**kept, **({} if name is None else preset(str(kind), str(name))), **settings, "kind": kind}


def preset(kind: str, name: str) -> dict[str, Any]:
    """The numbers of a preset of one kind.

    Raises:
        InputError: no such preset of this kind.
    """
    for other, presets in PRESETS.items():
        if other != kind and name in presets:
            mine = ", ".join(PRESETS[kind])
            raise InputError(f"preset '{name}' is of network.kind={other}, not {kind}. Expected one of: {mine}.")
    if name not in PRESETS[kind]:
        raise unknown("preset", name, PRESETS[kind])
    return PRESETS[kind][name]
