"""Strikes a process of a run, and measures how long it takes until all is as before."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distbelief.chaos.background import Background
from distbelief.chaos.members import Member, chosen
from distbelief.chaos.processes import Process, send
from distbelief.chaos.schedule import Kind
from distbelief.coordinator.restarts import SERVED_S
from distbelief.errors import RunError

WHOLE_S = 180.0
"""So long a run has to get whole again."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One recovery.

    Attributes:
        seconds: From the deed until what was lost served again.
        found_s: From the deed until the run knew of it.
        how: How it was replaced.
        items: Items that were leased again, None if that was not told.
    """

    seconds: float
    found_s: float
    how: str
    items: int | None


def recovery_of(
    recoveries: Sequence[Mapping[str, Any]], name: str, since: float
) -> Measured | None:
    """The first recovery of a name that was noticed after a moment, if it is complete.

    Args:
        recoveries: The run's, in order.
        name: What was lost, as the run calls it.
        since: The moment, in seconds since the run's start.
    """
    # The driver may notice in the very moment, and rounds its seconds.
    for entry in recoveries:
        if entry["what"] == name and entry["t"] >= since - 0.1 and entry["seconds"] is not None:
            found_s = max(0.0, entry["t"] - since)
            how = str(entry.get("how", "anew"))
            return Measured(found_s + entry["seconds"], found_s, how, entry["items_leased_again"])
    return None


@dataclass
class Target:
    """A run that is struck again and again, each time when it is whole.

    Attributes:
        run: The run.
        replicas: It has so many.
        twins: It has so many.
    """

    run: Background
    replicas: int
    twins: int = 0
    _recovered_at: dict[str, float] = field(default_factory=dict)

    def strike(self, kind: Kind, choice: int, *, stop: bool = False) -> Measured:
        """Kills a process of a kind, or stops it until it has been replaced.

        Raises:
            RunError: it was not replaced in time, or the run ended.
        """
        member, process = self.next(kind, choice)
        at = self.now()
        send(process, signal.SIGSTOP if stop else signal.SIGKILL)
        try:
            return self.recovered(member.name, at)
        finally:
            if stop:  # it finds that another has taken its place, and ends
                send(process, signal.SIGCONT)

    def next(self, kind: Kind, choice: int) -> tuple[Member, Process]:
        """Who is to be struck next: waits until all are at work, and it has served for a while.

        What dies again soon after it was started is started with a delay, which is not what is to
        be measured.

        Raises:
            RunError: they are not in time.
        """
        self.await_whole()
        name = self._chosen(kind, choice)[0].name
        self.await_rested(name)
        return self._chosen(kind, choice)

    def _chosen(self, kind: Kind, choice: int) -> tuple[Member, Process]:
        there = dict(self.run.members())
        member = chosen(list(there), kind, choice)
        if member is None:
            raise RunError(f"the run has no {kind}; see {self.run.storage.url}")
        return member, there[member]

    def await_rested(self, name: str) -> None:
        """Waits until what was lost last has served so long that this counts as its first death."""
        rested_at = self._recovered_at.get(name, -SERVED_S) + SERVED_S + 1.0
        self.run.wait_for(lambda: time.monotonic() > rested_at, "its rest", SERVED_S + WHOLE_S)

    def recovered(self, name: str, at: float) -> Measured:
        """Waits until a loss that happened at a moment has been made up for.

        Raises:
            RunError: it has not been in time, or the run ended.
        """
        found: list[Measured] = []

        def is_there() -> bool:
            mine = recovery_of(self.run.recoveries(), name, at)
            found.extend([mine] if mine else [])
            return bool(found)

        self.run.wait_for(is_there, f"the recovery of {name}", WHOLE_S)
        self._recovered_at[name] = time.monotonic()
        return found[0]

    def now(self) -> float:
        """Seconds since the run's start, as its events count them."""
        return time.time() - self.run.started_at

    def await_whole(self) -> None:
        """Waits until all are at work, and every replica has done an item from now on.

        Raises:
            RunError: they are not in time, or the run ended.
        """
        since = self.now()

        def is_whole() -> bool:
            kinds = [member.kind for member, _ in self.run.members()]
            done = {
                replica
                for event in self.run.events()
                if event["kind"] == "items" and event["t"] > since
                for replica in event["replicas"]
            }
            wanted: dict[Kind, int] = {
                "replica": self.replicas,
                "twin": self.twins,
                "coordinator": 1,
                "evaluator": 1,
            }
            all_there = all(kinds.count(kind) >= n for kind, n in wanted.items())
            return all_there and len(done) >= self.replicas

        self.run.wait_for(is_whole, "work of all", WHOLE_S)
