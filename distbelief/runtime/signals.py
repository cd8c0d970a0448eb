"""A user's wish to end the run, from whatever signal tells it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ask for an orderly end; the last one tells that the terminal has been closed."""


@dataclass
class Stop:
    """Whether the user has asked the run to end."""

    event: threading.Event = field(default_factory=threading.Event)
    signals: int = 0
    catching: bool = False
    starting: bool = False
    """Whether the run is being started, where nobody else tells that the signal has come."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; the second one insists.

        A terminal that is closed may tell so twice, and means nothing more by that.
        """
        self.signals += number != signal.SIGHUP
        self.event.set()
        if self.signals > 1:
            raise KeyboardInterrupt
        if self.starting:  # no print here: a signal may have come in the middle of one
            with suppress(OSError):  # of a terminal that has been closed
                os.write(sys.stderr.fileno(), b"stopping: what has been started is ended first\n")

    def catch(self) -> None:
        """Takes the signals again, from whatever library has put its own handlers in place.

        Ray does, and would end the process at SIGTERM without a word to its actors.
        """
        if self.catching:
            for number in SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # started by nohup
                signal.signal(number, self.on_signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP ask for an orderly end for the time of the block.

    Outside the main thread, where Python takes no handlers, nothing is installed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = [signal.getsignal(number) for number in SIGNALS]
    stop.catching = True
    stop.catch()
    try:
        yield stop
    finally:
        stop.catching = False
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
