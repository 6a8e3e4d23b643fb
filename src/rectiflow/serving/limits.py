"""What a server takes on at most; never imports torch."""

from dataclasses import dataclass
from typing import final

from rectiflow.base.errors import InputError


@final
@dataclass(frozen=True)
class Limits:
    """Bounds on memory, on time and on what a request may ask for.

    A picture weighs its area in pictures of the size trained on, rounded up.

    Args:
        queue: requests that wait; further ones are refused.
        slots: weight of the pictures in flight, over all lanes; bounds the memory of states.
        batch: weight of the rows of one call of the network; bounds the memory of activations. Guidance asks for two
            rows a picture.
        pictures: of one request.
        steps: of one request.
        evaluations: of the network by one request; bounds solvers that choose their own steps.
        side: longest side of a picture in pixels; 0 is twice that of the size trained on.
        prompt: characters of a prompt.
        body: bytes of a request's body.
        body_seconds: in which a body has to arrive.

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
    prompt: int = 2000
    body: int = 65_536
    body_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("queue", "slots", "batch", "pictures", "steps", "evaluations", "prompt", "body", "body_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"the limit {name} must be positive, received {getattr(self, name)}.")
        if self.side < 0:
            raise InputError(f"the limit side must be ≥ 0 (0 is twice the size trained on), received {self.side}.")
        if self.slots < self.pictures:
            raise InputError(f"{self.slots} slots hold no request of {self.pictures} pictures; raise one, or lower it.")
