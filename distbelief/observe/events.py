"""``events.jsonl``: what happened in a run, one JSON object a line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from distbelief.errors import DataError
from distbelief.storage import Storage

NAME = "events.jsonl"

RECOVERIES = frozenset({"replica_replaced", "recovered"})
"""Kinds that tell that something was lost, and serves again."""


class EventLog:
    """Appends events to a file; thread-safe, each line whole.

    Events that the storage does not take wait in this process, and are tried again with the next.

    Args:
        storage: The run's folder, whose ``events.jsonl`` may exist.
        started_at: The run's start, in seconds of ``clock``; an event's ``t`` counts from it.
        clock: Seconds that all processes of the run agree on.
    """

    def __init__(
        self, storage: Storage, started_at: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = storage.open_log(NAME, new=False)
        self._where = f"{storage.url}/{NAME}"
        self._failure = ""
        self._started_at = started_at
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def failure(self) -> str:
        """Why events are lost, or empty: so many wait that there is room for no more."""
        return self._failure

    @property
    def trouble(self) -> str:
        """Why events wait in this process, or empty: nothing is lost so far."""
        cause = self._file.failure
        return f"cannot write to {self._where}: {cause}" if cause else ""

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes one event.

        It never raises: who has something to tell is not who can mend a full disk. See
        :attr:`trouble` and :attr:`failure`; what comes after a failure is not written.
        """
        t = round(self._clock() - self._started_at, 3)
        line = json.dumps({"t": t, "kind": kind, **fields})
        with self._lock:
            if self._failure:
                return
            try:
                self._file.write(line + "\n")
            except OSError as error:
                self._failure = f"cannot write to {self._where}: {error.strerror or error}"
                return
            self._file.flush()

    def sync(self) -> None:
        """Returns when what has been written would survive a crash; OSError if it may not."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            try:
                self._file.close()
            except OSError as error:
                cause = f"cannot write to {self._where}: {error.strerror or error}"
                self._failure = self._failure or cause


def read_events(storage: Storage) -> list[dict[str, Any]]:
    """All events of a run, in order; a last line cut short is left out, no file is no event.

    Raises:
        DataError: a line is damaged.
    """
    try:
        *lines, _ = storage.read_log(NAME).split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{storage.url}/{NAME}", f"cannot be read: {error}") from error
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            float(event["t"]), event["kind"]
        except (ValueError, KeyError, TypeError) as error:
            problem = f"line {number} is damaged: {error!r}"
            raise DataError(f"{storage.url}/{NAME}", problem) from error
        events.append(event)
    return events
