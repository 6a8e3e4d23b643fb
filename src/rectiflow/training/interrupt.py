"""Wishes to stop that come as signals."""

import signal
import threading
import time
from types import FrameType
from typing import NoReturn, final

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO = 1.0  # seconds in which a signal that comes again is the same wish: launchers pass on what all have got already


@final
class AtOnceError(KeyboardInterrupt):
    """The process was asked to stop a second time: nothing more is waited for.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@final
class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a wish that the loop asks for; a second one is raised, as `AtOnceError`.

    Attributes:
        signal: what asked to stop; 0 if nothing did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._asked_at = 0.0

    @property
    def asked(self) -> bool:
        """Whether the process was asked to stop."""
        return self.signal != 0

    def __enter__(self) -> "Interrupt":
        # Elsewhere than in the main thread Python takes no signals; they are then not ours to answer.
        self._ours = threading.current_thread() is threading.main_thread()
        self._former = {number: signal.getsignal(number) for number in SIGNALS}
        if self._ours:
            for number in SIGNALS:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *problem: object) -> None:
        if self._ours:
            for number, former in self._former.items():
                signal.signal(number, former)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.signal, self._asked_at = number, now
        elif now - self._asked_at > _ECHO:
            raise AtOnceError(number)


def die(number: int) -> NoReturn:
    """End this process by a signal: the interpreter would first wait for a checkpoint that is being written."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    raise AssertionError("not reached")
