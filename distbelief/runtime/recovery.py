"""Deaths, and how long it took until what died served again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distbelief.observe.report import Report


@dataclass(slots=True)
class Recovery:
    """A death, from when it was noticed until what died serves again."""

    what: str
    cause: str
    t: float
    noticed_at: float
    how: str = "anew"
    snapshot: int | None = None
    seconds: float | None = None
    incarnation: int | None = None
    items: int | None = None

    def told(self) -> dict[str, Any]:
        """For the summary and for the event."""
        return {
            "what": self.what,
            "cause": self.cause,
            "t": round(self.t, 2),
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "items_leased_again": self.items,
            "how": self.how,
            "snapshot": self.snapshot,
        }


class Recoveries:
    """Tells each recovery once it is complete: to the summary, and as an event.

    Args:
        recovered: Takes it for the summary.
        emit: Writes an event.
        say: Tells the user.
    """

    def __init__(
        self,
        recovered: Callable[[dict[str, Any]], None],
        emit: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._recovered = recovered
        self._emit = emit
        self._uncounted: list[tuple[int, Recovery]] = []

    def served(self, shard: int, recovery: Recovery) -> None:
        """A shard serves again; what it has forgotten is counted by the coordinator."""
        self._uncounted.append((shard, recovery))

    def count(self, report: Report) -> None:
        """Takes what the coordinator has counted."""
        for entry in list(self._uncounted):
            shard, recovery = entry
            seen = next((s for s in report.shards if s["shard"] == shard), None)
            if seen is not None and seen["incarnation"] >= (recovery.incarnation or 0):
                recovery.items = int(seen["forgotten"])
                self._uncounted.remove(entry)
                self.complete(recovery)

    def complete(self, recovery: Recovery) -> None:
        """It is over."""
        told = recovery.told()
        if recovery.how != "twin":  # of which more has been said
            self._say(_sentence(recovery))
        self._recovered(told)
        self._emit("recovered", **{k: v for k, v in told.items() if k != "t"})


def _sentence(recovery: Recovery) -> str:
    after = f"after {recovery.seconds:.1f} s" if recovery.seconds is not None else ""
    if recovery.snapshot is None:
        return f"{recovery.what} serves again {after}"
    again = f"{recovery.items} items are done again" if recovery.items else "nothing is done again"
    return f"{recovery.what} serves again {after}, from snapshot {recovery.snapshot}: {again}"
