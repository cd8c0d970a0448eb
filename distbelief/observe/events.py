"""``events.jsonl``: what happened in a run, one JSON object a line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to a file; thread-safe, each line whole.

    Args:
        path: The file, which may exist: several processes of one run append to it.
        started_at: The run's start, in seconds of ``clock``; an event's ``t`` counts from it.
        clock: Seconds that all processes of the run agree on.
    """

    def __init__(
        self, path: Path, started_at: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._started_at = started_at
        self._clock = clock
        self._lock = threading.Lock()

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes one event."""
        t = round(self._clock() - self._started_at, 3)
        line = json.dumps({"t": t, "kind": kind, **fields})
        with self._lock:
            # One write a line: appends of different processes do not mix within it.
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file, in order; a last line cut short is left out."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]
