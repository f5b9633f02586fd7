"""Ctrl-C and SIGTERM: the first asks the work to stop and to write what is done, the second ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

_ASKS: Final = "Stopping after this model call; what is done will be written. Once more ends at once."


@dataclass
class Stop:
    """Whether the user asked to stop, and by which signal; called it says so.

    Attributes:
        signal: 0 before anybody has.
    """

    signal: int = 0

    def __call__(self) -> bool:
        """True once it was asked for."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """As shells give it."""
        return 128 + self.signal


@contextmanager
def stopping(say: Callable[..., None]) -> Iterator[Stop]:
    """Have the two signals ask to stop inside the block; the handlers of before are put back.

    Args:
        say: prints a line, with `error=True` to the error stream.
    """
    stop = Stop()

    def asked(number: int, frame: FrameType | None) -> None:
        if stop():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        stop.signal = number
        say(_ASKS, error=True)

    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield stop
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
