"""Items that may have killed their replicas: which ones are leased alone, and which given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distbelief.server.applied import ItemSet

ALONE_AT = 2
"""An item that so many dead replicas held is leased alone, so that it is known what it does."""

GIVEN_UP_AT = 3
"""An item that so many dead replicas held is set aside."""

REASON = f"its replica died {GIVEN_UP_AT} times"


class Suspects:
    """How many replicas died with each item in their hands.

    In it, as in a set, are the items that are to be leased alone.
    """

    def __init__(self) -> None:
        self._deaths: dict[int, int] = {}
        self._alone: set[int] = set()

    def __contains__(self, item: int) -> bool:
        return item in self._alone

    def __iter__(self) -> Iterator[int]:
        return iter(self._alone)

    def note_death(self, items: Iterable[int]) -> list[int]:
        """Takes note of what a dead replica held; returns the items that are to be given up."""
        given_up = []
        for item in items:
            self._deaths[item] = self._deaths.get(item, 0) + 1
            if self._deaths[item] >= ALONE_AT:
                self._alone.add(item)
            if self._deaths[item] >= GIVEN_UP_AT:
                given_up.append(item)
        return given_up

    def clear(self, done: ItemSet) -> None:
        """Those that are done have killed nobody."""
        for item in [item for item in self._deaths if item in done]:
            del self._deaths[item]
            self._alone.discard(item)
