"""Snapshots at their time, and what is to be said of the newest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from distbelief.coordinator.snapshots import Manifest, Pace
from distbelief.errors import DataError, RunError, SupersededError, TransportError
from distbelief.runtime.snapshots import Progressed, Snapshots
from distbelief.types import ShardFile

LOOK_S = 0.2
RETRY_S, RETRY_AWAY_S = 30.0, 2.0
"""After a snapshot that failed the next is tried so much later: if a shard was away, soon."""

OWED_S = 60.0
"""So long a snapshot that is due waits for items that a shard has forgotten."""


class RegularSnapshots:
    """Has snapshots taken when they are due. One thread at a time.

    Args:
        snapshots: Takes them.
        pace: When they are due.
        progressed: How the run stands, when the shards' files are there.
        emit: Writes an event.

    Attributes:
        newest: The newest one as plain values, with why a later one ``failed``; None before it.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        pace: Pace,
        progressed: Callable[[Sequence[ShardFile]], Progressed],
        emit: Callable[..., None],
    ) -> None:
        self._snapshots = snapshots
        self._pace = pace
        self._progressed = progressed
        self._emit = emit
        self.newest: dict[str, Any] | None = None
        self._was_away = False

    def run(
        self,
        examples_applied: Callable[[], int],
        closing: threading.Event,
        *,
        n_owed: Callable[[], int] = lambda: 0,
    ) -> None:
        """Takes them until ``closing`` is set; raises only what ends the run.

        While some shard lacks ``n_owed`` items that it had before, none is begun for a while: what
        it would hold back are the pushes by which that shard comes up with the others.
        """
        taken_at, examples_then = time.monotonic(), examples_applied()
        owed_at: float | None = None
        while not closing.wait(LOOK_S):
            examples = examples_applied()
            if not self._pace.due(examples - examples_then, time.monotonic() - taken_at):
                owed_at = None
                continue
            owed_at = owed_at or time.monotonic()
            if n_owed() == 0 or time.monotonic() - owed_at > OWED_S:
                owed_at = None
                if self.try_one("due"):
                    taken_at, examples_then = time.monotonic(), examples
                elif closing.wait(RETRY_AWAY_S if self._was_away else RETRY_S):
                    return

    def try_one(self, reason: str) -> bool:
        """Whether there is a new snapshot; if not, why is told, and training goes on.

        Raises:
            SupersededError: the run goes on elsewhere.
        """
        try:
            self.take(reason)
        except SupersededError:
            raise
        except (DataError, RunError, OSError) as error:
            self._emit("snapshot_failed", reason=reason, cause=str(error))
            self.newest = {**(self.newest or {}), "failed": str(error)}
            self._was_away = isinstance(error, TransportError)
            return False
        return True

    def take(self, reason: str) -> None:
        """Takes one now; raises why that cannot be."""
        began = time.monotonic()
        manifest = self._snapshots.take(self._progressed, reason=reason)
        self.note(manifest, round(time.monotonic() - began, 3))

    def require_current(self) -> None:
        """Raises SupersededError if another coordinator has taken the place of this one."""
        self._snapshots.require_current()

    def note(self, manifest: Manifest, seconds: float | None = None) -> None:
        """This is the newest one, and took so long."""
        self.newest = {
            "number": manifest.number,
            "even": manifest.even,
            "examples_applied": manifest.examples_applied,
            "t": round(manifest.elapsed_s, 3),
            "seconds": seconds,
        }
