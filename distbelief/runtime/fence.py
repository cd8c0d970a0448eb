"""Keeps a shard that has been given up, and goes on, from acknowledging anything."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from distbelief.errors import DataError, ProcessLostError
from distbelief.serving import read_serving
from distbelief.storage import Storage

LOOK_S = 1.0

STALE_S = 3.0
"""A look that is older does not count: the process may have been stopped for a while."""


class Fence:
    """Looks at who serves, every second; a context manager around a thread.

    Args:
        storage: The run's folder.
        shard: Which shard this process has.
        incarnation: Which start of it.
        run: Incarnation of the run's start.
    """

    def __init__(self, storage: Storage, shard: int, incarnation: int, run: int) -> None:
        self._storage = storage
        self._shard = shard
        self._incarnation = incarnation
        self._run = run
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._fenced = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fence", daemon=True)

    def __enter__(self) -> Fence:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def fenced(self) -> str:
        """Why this process must not serve any more, or empty."""
        return self._fenced

    def __call__(self) -> None:
        """Passes if this process may serve, as far as is known now.

        Raises:
            ProcessLostError: another start of the shard has taken its place.
        """
        if time.monotonic() - self._looked_at > STALE_S:
            with self._lock:
                if time.monotonic() - self._looked_at > STALE_S:
                    self._look()
        if self._fenced:
            raise ProcessLostError(f"shard {self._shard}", self._fenced)

    def _look(self) -> None:
        looked_at = time.monotonic()
        try:
            serving = read_serving(self._storage)
        except (OSError, DataError):
            return  # a folder that cannot be read is no reason to stop, and the next look is near
        if serving is not None and serving.fences(self._shard, self._incarnation, self._run):
            self._fenced = f"start {self._incarnation} of it has been replaced"
        self._looked_at = looked_at

    def _watch(self) -> None:
        while not self._fenced and not self._closing.wait(LOOK_S):
            self._look()
