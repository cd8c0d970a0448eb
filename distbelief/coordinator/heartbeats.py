"""Which processes have fallen silent, from the beats that were heard of them."""

from __future__ import annotations

from dataclasses import dataclass

STALL_S = 1.0
"""A watcher that did nothing for so long was stalled itself, and heard nobody."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A process to be given up.

    Attributes:
        name: Its name.
        seconds: For how long it has been so.
        what: What is wrong with it, in words.
    """

    name: str
    seconds: float
    what: str


@dataclass(slots=True)
class _Heard:
    at: float
    n_open: int = 0
    closed_at: float | None = None


class Beats:
    """Who was heard when. Times are seconds of one clock that never go back; not thread-safe.

    A name that was never heard is not late, and one that was forgotten never counts again: each
    start of a process has a name of its own. What the watcher itself slept through counts against
    nobody: when two calls are more than ``STALL_S`` apart, every deadline moves by that gap. So
    :meth:`late` is to be called several times a second.

    Args:
        silent_s: Without a beat for so long a process is late, though its connection stands.
        closed_s: Without a connection for so long it is late.
    """

    def __init__(self, *, silent_s: float = 4.0, closed_s: float = 1.5) -> None:
        self._silent_s = silent_s
        self._closed_s = closed_s
        self._heard: dict[str, _Heard] = {}
        self._forgotten: set[str] = set()
        self._called_at: float | None = None

    def opened(self, name: str, at: float) -> None:
        """A connection of the process begins, which is a beat too; it may have several."""
        self._note_call(at)
        if name in self._forgotten:
            return
        heard = self._heard.setdefault(name, _Heard(at))
        heard.at = at
        heard.n_open += 1
        heard.closed_at = None

    def note(self, name: str, at: float) -> None:
        """The process gives a sign of life."""
        self._note_call(at)
        if name not in self._forgotten:
            self._heard.setdefault(name, _Heard(at)).at = at

    def closed(self, name: str, at: float) -> None:
        """A connection of the process has ended."""
        self._note_call(at)
        heard = self._heard.get(name)
        if heard is None:
            return
        heard.n_open -= 1
        if heard.n_open == 0:
            heard.closed_at = at

    def forget(self, name: str) -> None:
        """The process has left in order, or was given up: whatever else comes of it is ignored."""
        self._heard.pop(name, None)
        self._forgotten.add(name)

    def late(self, at: float) -> list[Silent]:
        """The processes to be given up, by name; each is told again until it is forgotten."""
        self._note_call(at)
        found = [self._verdict(name, heard, at) for name, heard in sorted(self._heard.items())]
        return [silent for silent in found if silent is not None]

    def _verdict(self, name: str, heard: _Heard, at: float) -> Silent | None:
        if heard.closed_at is not None and at - heard.closed_at > self._closed_s:
            return Silent(name, at - heard.closed_at, "its connection ended")
        silence = at - heard.at
        if silence > self._silent_s:
            return Silent(name, silence, f"it did not say anything for {silence:.1f} s")
        return None

    def _note_call(self, at: float) -> None:
        gap = 0.0 if self._called_at is None else at - self._called_at
        self._called_at = at
        if gap <= STALL_S:
            return
        for heard in self._heard.values():
            heard.at += gap
            if heard.closed_at is not None:
                heard.closed_at += gap
