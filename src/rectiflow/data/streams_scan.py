"""What a look through one shard finds, whatever its kind."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rectiflow.data.config import DataConfig
from rectiflow.data.decode import Unusable, inspect
from rectiflow.data.inventory import unsuited

LOOKED_AT = 4  # pictures of a shard that tell whether it is grey, where not all are read


@dataclass
class Scan:
    """One shard.

    Args:
        kind: "parquet" or "tar".
        rows: samples in it.
        pieces: (first row, rows, row group, row groups, bytes to hold) of each piece; of a tar without row groups.
        spans: of a tar, int64 rows×5: where the picture and the caption begin and how long they are, and whether the
            caption lies in a field of JSON; lengths of 0 where there is none.
        labels: of each row; None for a row without, and in all if none are asked for.
        skipped: (row, why) of each row that cannot be used.
        notes: what else is told of it.
        looked: pictures that were looked into.
        grey: those of them that have no colour.
        picture: column of the pictures.
        caption: column, or kind of member, of the captions; empty if there are none.
    """

    kind: str
    rows: int = 0
    pieces: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    spans: np.ndarray | None = None
    labels: list[str | None] | None = None
    skipped: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looked: int = 0
    grey: int = 0
    picture: str = ""
    caption: str = ""

    def look(self, row: int, content: bytes | None, config: DataConfig) -> None:
        """Note what a picture is, and whether it cannot be used; with `data.check=header` for its colour alone."""
        whole = config.check == "decode"
        try:
            if content is None:
                raise Unusable("no bytes of a picture")
            facts = inspect(content, whole)
        except Unusable as problem:
            if whole:
                self.skipped.append((row, str(problem)))
            return
        reason = unsuited(config, facts.height, facts.width) if whole else ""
        if reason:
            self.skipped.append((row, reason))
            return
        self.looked += 1
        self.grey += facts.grey


def wants(row: int, config: DataConfig) -> bool:
    """Whether a row's picture is looked into before training."""
    return config.check == "decode" or row < LOOKED_AT


def label_of(value: Any) -> str | None:
    """A label as a name; None where it is missing."""
    missing = value is None or value == "" or value != value  # NaN, as tables have it for an empty cell
    return None if missing else str(value).strip()
