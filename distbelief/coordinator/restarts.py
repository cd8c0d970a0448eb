"""How often what dies is started again, and after how long."""

from __future__ import annotations

from collections import Counter

MOST = 6
"""More deaths of one thing in a row are too many."""

SERVED_S = 60.0
"""What has lived so long has served: an end after that is the first of a row."""

FIRST_S = 0.5


class Restarts:
    """Bounded restarts with back-off; no clock, times are given in seconds.

    The first restart in a row is at once, the others after 0.5, 1, 2, 4 and 8 seconds.
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self._started_at: dict[str, float] = {}

    def started(self, what: str, at: float) -> None:
        """It has begun to serve."""
        self._started_at[what] = at

    def died(self, what: str, at: float) -> float | None:
        """Seconds to wait before it is started again; None if it has died too often."""
        began = self._started_at.pop(what, None)
        if began is not None and at - began >= SERVED_S:
            self._in_a_row[what] = 0
        self._in_a_row[what] += 1
        n = self._in_a_row[what]
        if n > MOST:
            return None
        return 0.0 if n == 1 else FIRST_S * 2.0 ** (n - 2)
