"""Snapshots at their time, and what is to be said of the newest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from distbelief.coordinator.snapshots import Manifest, Pace
from distbelief.errors import RunError, SupersededError
from distbelief.runtime.snapshots import Snapshots, Standing
from distbelief.types import ShardFile

LOOK_S = 0.2
RETRY_S = 30.0
"""After a snapshot that failed the next is tried so much later."""


class RegularSnapshots:
    """Has snapshots taken when they are due. One thread at a time.

    Args:
        snapshots: Takes them.
        pace: When they are due.
        standing: How the run stands, when the shards' files are there.
        emit: Writes an event.

    Attributes:
        newest: The newest one as plain values, with why a later one ``failed``; None before it.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        pace: Pace,
        standing: Callable[[Sequence[ShardFile]], Standing],
        emit: Callable[..., None],
    ) -> None:
        self._snapshots = snapshots
        self._pace = pace
        self._standing = standing
        self._emit = emit
        self.newest: dict[str, Any] | None = None

    def run(self, examples_applied: Callable[[], int], closing: threading.Event) -> None:
        """Takes them until ``closing`` is set; raises only what ends the run."""
        taken_at, examples_then = time.monotonic(), examples_applied()
        while not closing.wait(LOOK_S):
            examples = examples_applied()
            if self._pace.due(examples - examples_then, time.monotonic() - taken_at):
                if self.try_one("due"):
                    taken_at, examples_then = time.monotonic(), examples
                elif closing.wait(RETRY_S):
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
        except (RunError, OSError) as error:
            self._emit("snapshot_failed", reason=reason, cause=str(error))
            self.newest = {**(self.newest or {}), "failed": str(error)}
            return False
        return True

    def take(self, reason: str) -> None:
        """Takes one now; raises why that cannot be."""
        began = time.monotonic()
        manifest = self._snapshots.take(self._standing, reason=reason)
        self.note(manifest, round(time.monotonic() - began, 3))

    def note(self, manifest: Manifest, seconds: float | None = None) -> None:
        """This is the newest one, and took so long."""
        self.newest = {
            "number": manifest.number,
            "even": manifest.even,
            "examples_applied": manifest.examples_applied,
            "t": round(manifest.elapsed_s, 3),
            "seconds": seconds,
        }
