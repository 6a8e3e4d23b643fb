"""`rectiflow data`: a built-in set as a plain folder of pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Data:
    """Write a built-in set as a folder of pictures, which trains again: rectiflow train folder --data DIR.

    Args:
        set: digits (class folders) or digit-scenes (captions in metadata.jsonl).
        out: The folder to write; new or empty.
        count: Pictures of each part (train and test) at most; 0 is all.
    """

    set: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    out: Path
    count: int = 0

    def __call__(self) -> int:
        """Write; returns the exit status."""
        from rectiflow.data.sets import write_set

        written = write_set(self.set, self.out, self.count)
        parts = " and ".join(f"{count} in {self.out / part}" for part, count in written.items())
        print(f"wrote {parts}. Train: rectiflow train folder --data {self.out}")
        return 0
