"""Wishes to stop that come as signals."""

import signal
import threading
from types import FrameType
from typing import final

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a wish that the loop asks for; a second one acts at once, as ever."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        # Elsewhere than in the main thread Python takes no signals; they are then not ours to answer.
        self._ours = threading.current_thread() is threading.main_thread()
        self._former = {number: signal.getsignal(number) for number in SIGNALS}
        if self._ours:
            for number in SIGNALS:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *problem: object) -> None:
        self._let_go()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._let_go()

    def _let_go(self) -> None:
        if self._ours:
            for number, former in self._former.items():
                signal.signal(number, former)
