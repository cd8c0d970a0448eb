"""Gradients that were refused as poison: whether an item is no good, or a replica."""

from __future__ import annotations

from collections import Counter

from distbelief.types import ItemOutcome, Refusal

POISON = frozenset({Refusal.NOT_FINITE, Refusal.NORM})
"""Refusals that lie in the item or in the replica rather than in the moment."""

MAX_POISONED = 3
"""An item whose gradient is refused as poison so often is set aside."""

MAX_IN_A_ROW = 3
"""A replica of which so many gradients in a row are refused as poison is dismissed."""


class Refusals:
    """Counts what was refused, by item and by replica. Not thread-safe."""

    def __init__(self) -> None:
        self._poisonings: Counter[int] = Counter()
        self._in_a_row: dict[int, list[int]] = {}
        self._dismissed: dict[int, str] = {}

    def note(self, replica: int, outcome: ItemOutcome) -> str:
        """Takes note of an outcome, refused or not; why its item is to be set aside, or empty."""
        item, refusal = outcome.item, outcome.refusal
        if refusal not in POISON:
            self._in_a_row.pop(replica, None)
            return ""
        row = [*self._in_a_row.get(replica, ()), item][-MAX_IN_A_ROW:]
        self._in_a_row[replica] = row
        # If all are of one item, that one is to blame.
        if len(row) == MAX_IN_A_ROW and len(set(row)) > 1:
            self._dismissed[replica] = f"{MAX_IN_A_ROW} gradients in a row were refused ({refusal})"
        self._poisonings[item] += 1
        times = self._poisonings[item]
        return f"{refusal}, {MAX_POISONED} times" if times >= MAX_POISONED else ""

    def dismissal(self, replica: int) -> str:
        """Why a replica is to fail, or empty."""
        return self._dismissed.get(replica, "")

    def lose(self, replica: int) -> None:
        """The replica is there no more."""
        self._in_a_row.pop(replica, None)
        self._dismissed.pop(replica, None)
