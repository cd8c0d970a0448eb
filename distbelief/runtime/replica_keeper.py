"""Starts a run's replicas, and replaces those that are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distbelief.errors import DismissedError, DistBeliefError, UnexpectedError
from distbelief.observe.report import Report
from distbelief.runtime.keeper import Members
from distbelief.runtime.world import ReplicaEnd, World

MAX_BARREN_DEATHS = 3
"""So many replicas dying one after another, none of which did an item, end the run."""

FIRST_WAIT_S = 0.5
"""Before the second of them is replaced; before the next twice as long."""


@dataclass(frozen=True, slots=True)
class _Due:
    """A replica that is to be started at that time, in place of one that died."""

    at: float
    recovery: dict[str, Any]
    died_at: float


@dataclass(slots=True)
class _Awaited:
    """A replacement that has done no item yet."""

    recovery: dict[str, Any]
    died_at: float
    successor: int


class ReplicaKeeper:
    """Has a run's replicas at work; for the supervisor's thread.

    Args:
        world: Where they are started.
        members: Who is at work; kept here.
        first: Number of the first replica.
        n_replicas: How many shall be at work.
        recoveries: Of the run; those of replicas are added.
        say: Tells the user.
    """

    def __init__(
        self,
        world: World,
        members: Members,
        *,
        first: int,
        n_replicas: int,
        recoveries: list[dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self._world = world
        self._members = members
        self._next = first
        self._n_replicas = n_replicas
        self._recoveries = recoveries
        self._say = say
        self._due: list[_Due] = []
        self._awaited: list[_Awaited] = []
        self._barren_deaths = 0
        self._examples_at_death = 0

    def fill(self) -> None:
        """Starts as many as are missing, but for those whose time will come."""
        for _ in range(self._n_replicas - len(self._members.running) - len(self._due)):
            self._start()

    def replace(
        self,
        end: ReplicaEnd,
        error: DistBeliefError,
        n_items: int | None,
        *,
        t: float,
        report: Report | None,
        has_trained: bool,
    ) -> None:
        """Has another take the place of one that was lost, now or after a while.

        Args:
            end: How it ended.
            error: Why.
            n_items: Items that go to others, if that is known.
            t: The run's time, in seconds.
            report: How the run stands, as far as is known.
            has_trained: Whether anything has been applied since the start.

        Raises:
            DistBeliefError: that would be in vain.
        """
        # What fails before anything was done, of itself, will fail again.
        applied = report.examples_applied if report else 0
        if end.fatal or (isinstance(error, UnexpectedError) and applied == 0):
            raise error
        over_items = bool(n_items) and has_trained
        wait_s = self._wait_for(end.replica, error, over_items, report)
        items = "its items go" if n_items is None else f"{n_items} items go"
        self._say(
            f"replica {end.replica} was lost ({end.cause}); {items} to others, another takes its "
            f"place"
        )
        recovery = {
            "what": f"replica {end.replica}",
            "cause": end.cause,
            "t": round(t, 2),
            "seconds": None,
            "items_leased_again": n_items,
        }
        self._recoveries.append(recovery)
        now = time.monotonic()
        self._due.append(_Due(now + wait_s, recovery, now))

    def start_due(self) -> None:
        """Starts those whose time has come."""
        now = time.monotonic()
        due = [entry for entry in self._due if entry.at <= now]
        self._due = [entry for entry in self._due if entry.at > now]
        for entry in due:
            successor = self._start()
            # Whom it replaces may have been about to replace another, who is still missed.
            for missed in self._awaited:
                if entry.recovery["what"] == f"replica {missed.successor}":
                    missed.successor = successor
            self._awaited.append(_Awaited(entry.recovery, entry.died_at, successor))

    def note_recoveries(self, report: Report) -> None:
        """A replacement serves once it has done its first item."""
        working = {r["replica"] for r in report.replicas if r["items"]}
        for entry in [e for e in self._awaited if e.successor in working]:
            recovery = entry.recovery
            recovery["seconds"] = round(time.monotonic() - entry.died_at, 2)
            about = {name: value for name, value in recovery.items() if name != "t"}
            self._world.emit("replica_replaced", **about, replica=entry.successor)
            place = f"in the place of {recovery['what']}"
            self._say(f"replica {entry.successor} works {place} after {recovery['seconds']:.1f} s")
            self._awaited.remove(entry)

    def _start(self) -> int:
        replica = self._next
        self._next += 1
        self._world.start_replica(replica)
        self._members.running.add(replica)
        return replica

    def _wait_for(
        self, replica: int, error: DistBeliefError, over_items: bool, report: Report | None
    ) -> float:
        """Seconds to wait before a replica is replaced; raises its error if that is in vain."""
        dismissed = isinstance(error, DismissedError)
        # What is refused again and again is set aside, and too much of it ends the run.
        if dismissed or not self._is_barren(replica, over_items, report):
            self._barren_deaths = 0
            return 0.0
        self._barren_deaths += 1
        if self._barren_deaths >= MAX_BARREN_DEATHS:
            raise error
        return FIRST_WAIT_S * 2.0 ** (self._barren_deaths - 1)

    def _is_barren(self, replica: int, over_items: bool, report: Report | None) -> bool:
        """Whether a replica died without any use: it did nothing, and nobody else did either.

        One that died over items in a run that has got on before is none: what it held may be to
        blame, and is set aside in the end.
        """
        if report is None:
            return False
        worked = any(r["replica"] == replica and r["items"] for r in report.replicas)
        advanced = report.examples_applied > self._examples_at_death
        self._examples_at_death = report.examples_applied
        return not (worked or advanced or over_items)
