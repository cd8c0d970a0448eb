"""Who sends how much: payload bytes by the names that callers give themselves."""

from __future__ import annotations

import threading
from collections import OrderedDict

SENDER_KEY = "distbelief-sender"
"""The metadata in which a caller names itself."""

MAX_SENDER_LENGTH = 64
MAX_SENDERS = 1024


def sender_name(text: str) -> str:
    """The name as it may stand in metadata: printable ASCII without blanks, not too long."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text[:MAX_SENDER_LENGTH])


class Traffic:
    """Bytes by sender; of too many senders those unheard of the longest go. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nbytes: OrderedDict[str, int] = OrderedDict()

    def add(self, sender: str, nbytes: int) -> None:
        """Counts; callers without a name are not counted."""
        name = sender_name(sender)
        if not name:
            return
        with self._lock:
            self._nbytes[name] = self._nbytes.get(name, 0) + nbytes
            self._nbytes.move_to_end(name)
            if len(self._nbytes) > MAX_SENDERS:
                self._nbytes.popitem(last=False)

    def by_sender(self) -> dict[str, int]:
        """A copy of the counts."""
        with self._lock:
            return dict(self._nbytes)
