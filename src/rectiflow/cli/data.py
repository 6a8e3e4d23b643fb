"""`rectiflow data`: what training would see of a set, and a built-in one as a plain folder of pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rectiflow.base.errors import InputError
from rectiflow.data.config import BUILTIN, CLIP_RATE
from rectiflow.recipes.registry import resolve

if TYPE_CHECKING:
    from rectiflow.data.images import ImageSet

_EXAMPLES = 5

# The recipes for folders of what the built-in sets hold: clips, and pictures with captions.
_TRAINED_BY = {"digit-clips": ("video", f" --set data.rate={CLIP_RATE}"), "digit-scenes": ("text", "")}


@dataclass(frozen=True)
class Data:
    """Show what training would see: pictures or clips used and skipped, captions, buckets. Nothing is written.

    With --out, a built-in set is written as a folder of pictures or clips instead, which trains again: rectiflow train
    folder --data DIR.

    Args:
        source: A folder of pictures or clips, shards such as "s3://set/*.tar", or digits, digit-scenes or digit-clips.
        out: The folder to write; new or empty.
        count: Pictures of each part (train and test) to write at most; 0 is all.
        set: Settings of the data, such as data.size=64 data.buckets=7 data.caption=prompt data.frames=17.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET|DIR|SHARDS")]
    out: Path | None = None
    count: int = 0
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()

    def __call__(self) -> int:
        """Show or write; returns the exit status."""
        asked = [setting for group in self.set for setting in group]
        if self.out is None:
            self._show(asked)
            return 0
        if asked:
            raise InputError("--out writes a built-in set as it is; leave out --set.")
        from rectiflow.data.sets import write_set

        written = write_set(self.source, self.out, self.count)
        parts = " and ".join(f"{count} in {self.out / part}" for part, count in written.items())
        recipe, settings = _TRAINED_BY.get(self.source, ("folder", ""))
        print(f"wrote {parts}. Train: rectiflow train {recipe} --data {self.out}{settings}")
        return 0

    def _show(self, settings: list[str]) -> None:
        from rectiflow.base.terminal import plain_console
        from rectiflow.training.run import pictures_of

        shards = "://" in self.source or self.source.endswith((".tar", ".parquet"))
        if self.source not in BUILTIN and not shards and not Path(self.source).is_dir():
            raise InputError(
                f"no folder at {self.source}; expected one, shards (.tar or .parquet), or a built-in set: "
                f"{', '.join(BUILTIN)}."
            )
        if any(setting.startswith("data.frames=") and setting != "data.frames=1" for setting in settings):
            settings = ["network.kind=video", *settings]  # the one that takes clips
        if self.source in BUILTIN:
            config = resolve("digits", None, [f"data.set={self.source}", *settings])
        elif shards:
            named = json.dumps([self.source])
            config = resolve("folder", None, ["data.set=shards", f"data.shards={named}", *settings])
        else:
            folder = json.dumps(str(Path(self.source).absolute()))
            config = resolve("folder", None, [f"data.dir={folder}", *settings])
        console = plain_console()
        for line in _lines(pictures_of(config, None, console)):
            console.print(line, soft_wrap=True)


def _lines(data: "ImageSet") -> list[str]:
    """How many pictures, of which shape and classes; and a few captions from all over the set."""
    import torch

    lines = [
        f"{len(data.train):,} to train on, {len(data.held_out):,} held out; {'×'.join(map(str, data.shape))}; "
        f"{len(data.class_names)} classes{': ' if data.class_names else ''}{', '.join(data.class_names[:10])}"
        f"{' …' if data.class_names[10:] else ''}"
    ]
    if data.train.captioned:
        # More than are shown, since some pictures may have none.
        index = torch.linspace(0, len(data.train) - 1, min(20 * _EXAMPLES, len(data.train))).long()
        some = [caption for caption in data.train.captions(index) if caption]
        shown = some[:: max(1, len(some) // _EXAMPLES)][:_EXAMPLES]
        lines += ["captions, such as:", *(f"  {' '.join(caption[:200].split())}" for caption in shown)]
    return lines
