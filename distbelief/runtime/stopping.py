"""Asking a run to end from outside its process: a file in its folder."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

from distbelief.storage import LocalStorage, Storage, write_json

NAME = "stop"

LOOK_S, LOOK_REMOTE_S = 1.0, 5.0
"""How often a run looks for the file; each look at an object store costs."""


def request_stop(storage: Storage) -> None:
    """Asks the run that goes on in a folder to end in order; returns at once.

    Raises:
        OSError: the folder cannot be written to.
    """
    write_json(
        storage,
        NAME,
        {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time()},
    )


def withdraw(storage: Storage) -> None:
    """Takes the request back, as far as that can be done: a run that begins heeds no older one."""
    with suppress(OSError):
        storage.remove(NAME)


class StopFile:
    """Sets an event once the run is asked to end. A context manager for the run's whole time.

    A thread looks for the file, which is removed at the start, since whoever wrote it meant
    another process, and at the end.

    Args:
        storage: The run's folder, which the run holds.
        event: What to set.
        every_s: Seconds from look to look; by default as fits the storage.
    """

    def __init__(
        self, storage: Storage, event: threading.Event, *, every_s: float | None = None
    ) -> None:
        self._storage = storage
        self._event = event
        local = isinstance(storage, LocalStorage)
        self._every_s = every_s or (LOOK_S if local else LOOK_REMOTE_S)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-file", daemon=True)

    def __enter__(self) -> StopFile:
        withdraw(self._storage)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        withdraw(self._storage)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            # A look that fails is made up for by the next.
            with suppress(OSError):
                if self._storage.exists(NAME):
                    self._event.set()
                    return
