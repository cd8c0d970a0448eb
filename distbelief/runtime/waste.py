"""Whether a run still does what it is for: a limit on what may be skipped and set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from distbelief.coordinator.coordinator import RunStatus
from distbelief.coordinator.suspects import REASON
from distbelief.errors import RunError
from distbelief.items import ItemPlan

MOST_SET_ASIDE, SHARE_SET_ASIDE = 3, 0.01
"""A run of which more than so many items, and more than this share, are set aside has failed."""

MOST_SKIPPED, SHARE_SKIPPED = 10, 0.001
"""Likewise of the images that could not be read."""

SHOWN_UNREADABLE = 10
"""So many of them are named."""


class Waste:
    """What could not be used."""

    def __init__(self, plan: ItemPlan) -> None:
        self._plan = plan
        self._unreadable: dict[str, None] = {}

    def unreadable(self, names: Iterable[str]) -> None:
        """Takes note of images that could not be read; in each epoch they are told again."""
        for name in names:
            if len(self._unreadable) < SHOWN_UNREADABLE:
                self._unreadable[name] = None

    def check(self, status: RunStatus) -> None:
        """Ends a run that goes on without doing anything, before it says that it has finished.

        Raises:
            RunError: too much is skipped or set aside.
        """
        n_skipped, n_aside = status.examples_skipped, status.items_set_aside
        if n_skipped > max(MOST_SKIPPED, SHARE_SKIPPED * status.examples_applied):
            some = f"{', '.join(self._unreadable)}; " if self._unreadable else ""
            raise RunError(
                f"{n_skipped} of {status.examples_applied} images could not be read: mend or "
                f"remove them ({some}all are in the push logs, as skipped)"
            )
        if n_aside > max(MOST_SET_ASIDE, SHARE_SET_ASIDE * self._plan.n_items):
            reason, n = Counter(status.set_aside.values()).most_common(1)[0]
            remedy = (
                "look at the files that events.jsonl has with `set_aside`"
                if reason == REASON
                else "the training has diverged; lower --lr, or set --clip-norm; if so from the "
                "start, look at the data"
            )
            raise RunError(
                f"{n_aside} of {self._plan.n_items} items had to be set aside, {n} of them since: "
                f"{reason}; {remedy}"
            )
