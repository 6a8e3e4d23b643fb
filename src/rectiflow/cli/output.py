"""Where samples go: one picture or film of all of them, arrays, or a folder with a file each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rectiflow.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 16
_STRIP = 9  # frames of a clip in a PNG
FILMS = (".mp4", ".gif")
Each = Literal["mp4", "gif", "frames"]


@dataclass(frozen=True)
class Output:
    """A file or a folder for N samples.

    Args:
        path: X.png is a grid, of clips a strip of frames each; X.mp4 and X.gif are clips side by side; X.npz holds
            arr_0 (uint8, N×H×W×C or N×T×H×W×C) and arr_1 (labels); anything else is a folder.
        columns: samples in a row; 0 is as many as are named, up to 16.
        rate: frames a second of films; None is what the samples say of themselves (`rate_of`).
        each: what a folder gets of each clip: an mp4, a gif, or a folder of its frames.
    """

    path: Path
    columns: int = 0
    rate: float | None = None
    each: Each = "mp4"

    @property
    def suffix(self) -> str:
        """The ending of the file's name; empty for a folder."""
        return self.path.suffix.lower()

    def check(self) -> None:
        """Nothing, if the kind of file is known.

        Raises:
            InputError: it is not.
        """
        if self.suffix not in ("", ".png", ".npz", *FILMS):
            raise InputError(
                f"--out {self.path}: expected a name ending in .png, .npz, .mp4 or .gif, or a folder without an ending."
            )
        if self.each != "mp4" and self.suffix:
            raise InputError(f"--each {self.each} is of a folder, received --out {self.path}; leave its ending out.")
        from rectiflow.data.clips import FASTEST, SLOWEST, check_frames

        if self.each == "frames" and self.path.is_dir():
            for folder in self.path.glob("[0-9]" * 5):
                check_frames(folder)
        if self.rate is None:
            return
        if not SLOWEST <= self.rate <= FASTEST:
            raise InputError(f"--rate is {SLOWEST:g} to {FASTEST:g} frames a second, received {self.rate:g}.")

    def write(
        self,
        pixels: "Tensor",
        labels: "Tensor",
        about: Mapping[str, Any],
        each: Sequence[Mapping[str, Any]],
        names: Sequence[str] = (),
    ) -> None:
        """Write samples in [−1, 1], N×C×H×W or N×C×T×H×W.

        Args:
            pixels: the samples.
            labels: int64 N.
            about: what the file carries, if there is one file.
            each: what each sample carries in a folder.
            names: N names of files in a folder; numbers if left out.

        Raises:
            InputError: a film is asked for of pictures, or the disk does not take it.
        """
        from rectiflow.data.pictures import grid, save_folder, save_npz, save_png, screen_scale, to_uint8

        if pixels.dim() == 5 and pixels.shape[2] > 1:
            return self._write_clips(pixels, labels, about, each, names)
        if self.suffix in FILMS:
            raise InputError(f"--out {self.path}: single pictures are made, not clips; use a name ending in .png.")
        levels = to_uint8(pixels.squeeze(2) if pixels.dim() == 5 else pixels)
        if self.suffix == ".npz":
            return save_npz(levels, labels, self.path)
        if self.suffix == ".png":
            columns = self.columns or min(len(names) or 1, _COLUMNS)
            return save_png(grid(levels, columns, screen_scale(*levels.shape[1:3])), self.path, about)
        return save_folder(levels, self.path, each, names)

    def _write_clips(
        self,
        pixels: "Tensor",
        labels: "Tensor",
        about: Mapping[str, Any],
        each: Sequence[Mapping[str, Any]],
        names: Sequence[str],
    ) -> None:
        from rectiflow.data.clips import clip_grid, film_strip, rate_of, save_clip, save_clips
        from rectiflow.data.pictures import save_npz, save_png, to_uint8

        levels = to_uint8(pixels)
        rate = rate_of(about) if self.rate is None else self.rate
        if self.suffix == ".npz":
            save_npz(levels, labels, self.path)
        elif self.suffix == ".png":
            save_png(film_strip(levels, _STRIP), self.path, about)
        elif self.suffix in FILMS:
            columns = self.columns or min(len(levels), _COLUMNS)
            # One clip is only itself, without a frame of grey around it: a film that can be gone on from.
            save_clip(clip_grid(levels, columns) if len(levels) > 1 else levels[0], self.path, rate, about)
        else:
            save_clips(levels, self.path, rate, each, names, "" if self.each == "frames" else f".{self.each}")
