"""A pause: pushes of new items wait, so that all shards can be saved with the same items."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from distbelief.types import ShardState


@dataclass(frozen=True, slots=True)
class Capture:
    """A copy of a shard's state: the bytes of its file, and its account.

    ``paused_s`` are the seconds for which pushes were held back for it.
    """

    content: bytearray
    state: ShardState
    paused_s: float = 0.0


class Pause:
    """One pause of a shard; callers whose pushes are held wait on it.

    Attributes:
        admitted: Items that are applied all the same.
        missing: Those of them that have not come yet.
        capture: The state, once the last of them has come.
        complete: Set when there is a capture.
    """

    def __init__(self, seconds: float, admitted: frozenset[int] = frozenset()) -> None:
        self.admitted = admitted
        self.missing = set(admitted)
        self.capture: Capture | None = None
        self.complete = threading.Event()
        self.began = time.monotonic()
        self._until = self.began + seconds
        self._over = threading.Event()

    @property
    def expired(self) -> bool:
        """Whether it has lasted as long as it may: whoever asked for it may have died."""
        return time.monotonic() >= self._until

    def end(self) -> None:
        """Lets those who wait try again."""
        self._over.set()

    def wait(self) -> None:
        """Blocks until the pause has ended, or may last no longer."""
        self._over.wait(max(0.0, self._until - time.monotonic()))


class Gate:
    """Which pushes a shard holds back just now. For the shard's writer alone.

    Args:
        capture: Takes a copy of the shard's state.
    """

    def __init__(self, capture: Callable[[], Capture]) -> None:
        self._capture = capture
        self._pause: Pause | None = None

    def begin(self, pause: Pause) -> None:
        """From now on this pause holds; it goes on for one that held before it."""
        if self._pause is not None:
            pause.began = self._pause.began
        self.open()
        self._pause = pause

    def open(self) -> None:
        """Ends the present pause, if there is one."""
        if self._pause is not None:
            self._pause.end()
            self._pause = None

    def abandon(self) -> None:
        """Lets go whoever waits, for pushes or for a capture that will not come."""
        if self._pause is not None:
            self._pause.complete.set()
        self.open()

    def held(self, item: int) -> Pause | None:
        """The pause for which the push of a new item must wait."""
        pause = self._pause
        if pause is None or item in pause.admitted:
            return None
        if pause.expired:
            self.open()
            return None
        return pause

    def note(self, item: int) -> None:
        """An item is accounted for; the last that a pause waits for ends it, at that very state."""
        pause = self._pause
        if pause is not None and item in pause.missing:
            pause.missing.discard(item)
            if not pause.missing:
                self.finish(pause)

    def refused(self, item: int) -> None:
        """An item was not applied: a pause that waits for it would wait in vain."""
        if self._pause is not None and item in self._pause.missing:
            self.finish(self._pause)

    def finish(self, pause: Pause) -> Capture:
        """The pause's capture, taken now if it has none; the pause is over."""
        if pause.capture is None:
            capture = self._capture()
            pause.capture = replace(capture, paused_s=time.monotonic() - pause.began)
        if self._pause is pause:
            self._pause = None
        pause.end()
        pause.complete.set()
        return pause.capture
