"""What is to be done again after a death: at once, or after a while if it comes again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

from distbelief.coordinator.restarts import Restarts
from distbelief.errors import UsageError
from distbelief.runtime.world import ProcessEnd


class Later:
    """Does what is due when it is asked to; has one caller at a time."""

    def __init__(self) -> None:
        self._restarts = Restarts()
        self._due: list[tuple[float, Callable[[], None]]] = []

    def started(self, what: str) -> None:
        """It has begun to serve."""
        self._restarts.started(what, time.monotonic())

    def died(self, what: str, end: ProcessEnd, action: Callable[[], None]) -> None:
        """Has ``action`` done when it is time.

        Raises:
            DistBeliefError: the end's own, if it has died too often, or if the user must mend it.
        """
        wait_s = self._restarts.died(what, time.monotonic())
        if wait_s is None or isinstance(end.error, UsageError):
            raise end.error
        self._due.append((time.monotonic() + wait_s, action))

    def do(self, action: Callable[[], None], *, after_s: float = 0.0) -> None:
        """Has it done at the next tick, or after a while."""
        self._due.append((time.monotonic() + after_s, action))

    def tick(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        due = [action for at, action in self._due if at <= now]
        self._due = [(at, action) for at, action in self._due if at > now]
        for action in due:
            action()
