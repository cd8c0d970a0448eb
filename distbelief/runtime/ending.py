"""How a coordinator can end before its run does: it fails, it dies, or another takes its place."""

from __future__ import annotations

import threading
from collections.abc import Callable

from distbelief.errors import ProcessLostError, SupersededError, as_distbelief_error
from distbelief.faults.points import InjectedError, Injector


class Ending:
    """Whether a coordinator is of use. Thread-safe.

    Args:
        injector: Passes points of this process.
        closing: Set when it is of none any more.
        failed: Told why the run cannot go on.

    Attributes:
        failure: Why the run cannot go on, or empty.
        dead: Why this coordinator is of no use any more, or empty; another can take its place.
    """

    def __init__(
        self, injector: Injector, closing: threading.Event, failed: Callable[[str], None]
    ) -> None:
        self._injector = injector
        self._closing = closing
        self._failed = failed
        self.failure = ""
        self.dead = ""

    def abandon(self, cause: str) -> None:
        """It stops where it stands, as a process that dies does."""
        self.dead = self.dead or cause
        self._closing.set()

    def require_alive(self, point: str) -> None:
        """Passes a point for a caller who survives the coordinator.

        Raises:
            ProcessLostError: it is dead, or has just died of a fault that was injected.
        """
        if not self.dead:
            try:
                self._injector.at(point)
            except InjectedError:
                self.abandon(f"it died at {point}")
        if self.dead:
            raise ProcessLostError("the coordinator", self.dead)

    def guarded(self, work: Callable[[], None]) -> None:
        """Does a thread's work, and takes note of how it ends."""
        try:
            work()
        except InjectedError as death:
            self.abandon(f"it died at {death}")
        except SupersededError as error:
            self.abandon(str(error))
        except Exception as error:  # whatever it is, the next report of the run tells it
            if not self.dead:
                self.failure = str(as_distbelief_error(error))
                self._failed(self.failure)
