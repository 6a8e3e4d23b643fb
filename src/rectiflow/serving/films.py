"""Clips that are made for nobody in particular: jobs, and the films that come of them, kept for a while."""

import io
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, final

import torch
from torch import Tensor

from rectiflow.data.clips import film_strip, save_clip
from rectiflow.data.pictures import to_image
from rectiflow.serving.asked_video import Wanted
from rectiflow.serving.engine import Engine
from rectiflow.serving.follow import refusal_of
from rectiflow.serving.frames import LONGEST, read_frames
from rectiflow.serving.job import Event, Failed, Finished, Full, Job
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Served
from rectiflow.serving.shown import about, settings

_LOG = logging.getLogger(__name__)
_RETRY = 5  # seconds, where films are made faster than they can be written
_STRIP = 8  # frames of a sheet
KINDS = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/png"}
Status = Literal["queued", "in_progress", "completed", "failed"]


@final
@dataclass(eq=False)
class Film:
    """A job of the videos API.

    Args:
        wanted: what to make.
        seconds: for which its film is kept.
        job: of the engine.
        files: by kind, once they are there.
        error: why there are none.
        completed: time at which it was done, or had failed; 0 until then.
        forgotten: whether it was deleted.
    """

    wanted: Wanted
    seconds: int
    id: str = field(default_factory=lambda: f"video_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    job: Job | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    error: Refusal | None = None
    completed: float = 0.0
    forgotten: bool = False

    @property
    def status(self) -> Status:
        """Of OpenAI's four."""
        if self.error is not None:
            return "failed"
        if self.files:
            return "completed"
        return "in_progress" if self.job is not None and self.job.begun else "queued"

    @property
    def progress(self) -> int:
        """Per cent of the steps; 100 when the film is there, and not before."""
        if self.status == "completed":
            return 100
        return 0 if self.job is None else min(99, int(100 * self.job.progress))

    @property
    def expires(self) -> int | None:
        """Time at which it is forgotten; None until it is done."""
        return int(self.completed) + self.seconds if self.completed else None

    @property
    def size(self) -> int:
        """Of its files, in bytes."""
        return sum(map(len, self.files.values()))

    def let_go(self) -> None:
        """Of what it was made from, which nobody needs any more."""
        request = replace(self.wanted.request, first=None, last=None)
        self.wanted = replace(self.wanted, request=request, before=b"")

    def told(self, served: Served) -> dict[str, Any]:
        """The `Video` of OpenAI's clients, with its settings beside."""
        asked, error = self.wanted.request, self.error
        shown = settings(served, asked, self.wanted.rate)
        del shown["n"]
        return {
            "id": self.id,
            "object": "video",
            "model": served.name,
            "status": self.status,
            "progress": self.progress,
            "created_at": self.created,
            "completed_at": int(self.completed) if self.status == "completed" else None,
            "expires_at": self.expires,
            "seconds": f"{self.wanted.length / self.wanted.rate:g}",
            "error": None if error is None else {"code": error.code or "failed", "message": error.message},
            "remixed_from_video_id": None,
            **shown,
            "frames": self.wanted.length,
        }


@final
class Films:
    """The jobs of one engine, in bounded memory: the oldest finished ones go, and each after a while.

    Args:
        engine: makes the clips.
        served: the model and its limits.
    """

    def __init__(self, engine: Engine, served: Served) -> None:
        self.engine, self.served = engine, served
        self._films: dict[str, Film] = {}  # in the order in which they were asked for
        self._lock = threading.Lock()
        self._writing = 0  # bytes of frames that wait to be written
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="films")

    def start(self, wanted: Wanted) -> Film:
        """A new job.

        Raises:
            InputError: it cannot be, or is larger than what is ever taken on.
            Full: the queue is full.
            Closing: the engine is shutting down.
        """
        if self._writing >= self.served.limits.film_bytes:
            raise Full(_RETRY)
        film = Film(wanted, self.served.limits.film_seconds)
        film.job = self.engine.submit(wanted.request, lambda event: self._hear(film, event))
        with self._lock:
            self._films[film.id] = film
        self._forget_old()
        return film

    def find(self, name: str) -> Film:
        """The job of this id.

        Raises:
            Refusal: there is none, or none any more.
        """
        self._forget_old()
        film = self._films.get(name)
        if film is None:
            words = f"there is no video '{name[:100]}'; it may have been deleted, or its time is over."
            raise Refusal(404, words, "video_id", "video_not_found")
        return film

    def all(self) -> list[Film]:
        """Every job, the oldest first."""
        self._forget_old()
        with self._lock:
            return list(self._films.values())

    def delete(self, name: str) -> None:
        """Forget a job; one that is not done is cancelled.

        Raises:
            Refusal: there is none.
        """
        film = self.find(name)
        with self._lock:
            self._forget(film)

    def close(self) -> None:
        """Give up all that is not done: nobody can ask for it any more."""
        with self._lock:
            for film in list(self._films.values()):
                self._forget(film)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _forget(self, film: Film) -> None:
        film.forgotten = True
        self._films.pop(film.id, None)
        if film.job is not None and not film.completed:
            self.engine.cancel(film.job)

    def _forget_old(self) -> None:
        limits, now = self.served.limits, time.time()
        with self._lock:
            done = sorted((f for f in self._films.values() if f.completed), key=lambda film: film.completed)
            held = sum(film.size for film in done)
            for number, film in enumerate(done):
                left = len(done) - number
                if film.completed + film.seconds > now and left <= limits.films and held <= limits.film_bytes:
                    break
                held -= film.size
                self._forget(film)

    def _hear(self, film: Film, event: Event) -> None:
        """An event, on the thread of a lane, which must not wait for a film to be written."""
        if isinstance(event, Failed):
            film.error, film.completed = refusal_of(event.error), time.time()
            film.let_go()
        elif isinstance(event, Finished) and not film.forgotten:
            with self._lock:
                self._writing += event.pixels.numel()
            try:
                self._writer.submit(self._write, film, event.pixels)
            except RuntimeError:  # shut down meanwhile
                film.forgotten = True

    def _write(self, film: Film, pixels: Tensor) -> None:
        files = {}
        try:
            if not film.forgotten:
                files = _files(self.served, film.wanted, pixels)
        except Exception as error:
            _LOG.exception("a film could not be written")
            film.error = refusal_of(error)
        with self._lock:
            self._writing -= pixels.numel()
            film.completed, film.files = time.time(), files
            film.let_go()
        self._forget_old()


def _files(served: Served, wanted: Wanted, pixels: Tensor) -> dict[str, bytes]:
    """What there is to fetch of one clip, uint8 1×T×H×W×C."""
    words = about(served, wanted.request, 0, wanted.rate) | {"frames": wanted.length}
    if wanted.before:
        before, _, _ = read_frames(wanted.before, pixels.shape[-1], (pixels.shape[2], pixels.shape[3]), LONGEST)
        pixels = torch.cat([before, pixels[:, before.shape[1] - wanted.length :]], dim=1)
    with TemporaryDirectory(prefix="rectiflow-") as folder:
        path = Path(folder, "clip.mp4")
        save_clip(pixels[0], path, wanted.rate, words, scale=1)
        video = path.read_bytes()
    small, strip = io.BytesIO(), io.BytesIO()
    to_image(pixels[0, pixels.shape[1] // 2]).save(small, format="WEBP", lossless=True)
    film_strip(pixels, _STRIP).save(strip, format="PNG")
    return {"thumbnail": small.getvalue(), "spritesheet": strip.getvalue(), "video": video}
