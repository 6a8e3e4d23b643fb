"""What a server takes on at most; never imports torch."""

from dataclasses import dataclass, fields
from typing import final

from rectiflow.base.errors import InputError


@final
@dataclass(frozen=True)
class Limits:
    """Bounds on memory, on time and on what a request may ask for.

    A picture weighs its area in pictures of the size trained on, rounded up; a clip as much as its frames together, a
    long one as much as those that are made at once.

    Args:
        queue: requests that wait; further ones are refused.
        slots: weight of the pictures in flight, over all lanes; bounds the memory of states.
        batch: weight of the rows of one call of the network; bounds the memory of activations. Guidance asks for two
            rows a picture.
        pictures: of one request.
        steps: of one request.
        evaluations: of the network by one request, or one window of a clip; bounds solvers that choose their own steps.
        side: longest side of a picture in pixels; 0 is twice that of the size trained on.
        frames: most frames of a clip that is made at once, which is a window; 0 is the number trained on.
        windows: of a longer clip, the first included, for a model that is given frames.
        prompt: characters of a prompt.
        body: bytes of a request's body.
        upload: bytes of a body that may hold pictures which clips begin or end with.
        body_seconds: in which a body has to arrive.
        films: of the videos API, finished and kept; the oldest go.
        film_bytes: of all of these together; of the frames of one request for long clips, and of frames that wait to be
            written.
        film_seconds: for which one is kept.

    Raises:
        InputError: a bound that leaves room for nothing.
    """

    queue: int = 64
    slots: int = 128
    batch: int = 128
    pictures: int = 10
    steps: int = 250
    evaluations: int = 1000
    side: int = 0
    frames: int = 0
    windows: int = 16
    prompt: int = 2000
    body: int = 65_536
    upload: int = 8_388_608
    body_seconds: float = 10.0
    films: int = 64
    film_bytes: int = 268_435_456
    film_seconds: int = 3600

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name not in ("side", "frames")):
            if not getattr(self, name) > 0:
                raise InputError(f"the limit {name} must be positive, received {getattr(self, name)}.")
        if self.side < 0:
            raise InputError(f"the limit side must be ≥ 0 (0 is twice the size trained on), received {self.side}.")
        if self.frames < 0:
            raise InputError(f"the limit frames must be ≥ 0 (0 is the number trained on), received {self.frames}.")
        if self.slots < self.pictures:
            raise InputError(f"{self.slots} slots hold no request of {self.pictures} pictures; raise one, or lower it.")
