"""A primary's side of replication: its twin has each push before the primary applies it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.services import TwinService
from distbelief.types import Push, Version

Connect = Callable[[str], AbstractContextManager[TwinService]]
"""The way to the shard at an address.

Entering it sends nothing; leaving it, in any thread, ends the calls that are under way, which then
raise TransportError.
"""

PROMOTED = "promoted"
"""Why a shard refuses to follow another one: it serves by itself."""

FOLLOWS_NO_MORE = "follows_no_more"
"""Why a twin refuses what does not come next after its state."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class _Link:
    """The way to one twin."""

    def __init__(self, context: AbstractContextManager[TwinService]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self.service = context.__enter__()
        self.incarnation = 0
        self.over = threading.Event()

    def end(self) -> None:
        """Ends what is under way."""
        with self._lock:
            first = not self.over.is_set()
            self.over.set()
        if first:
            self._context.__exit__(None, None, None)


class Mirror:
    """The twin of a shard, if it has one.

    The shard's writer alone begins it and feeds it, and waits for the twin; :meth:`release` and
    :meth:`end` are for any thread and end that wait.

    Args:
        shard: Which shard.
        connect: The way to its twins; without it, it can have none.
    """

    def __init__(self, shard: int, connect: Connect | None) -> None:
        self._shard = shard
        self._connect = connect
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._ended = False

    @property
    def twin(self) -> int:
        """Incarnation of the twin that is fed, or 0."""
        link = self._link
        return 0 if link is None else link.incarnation

    def begin(self, address: str, state: Callable[[], bytearray], source: Version) -> None:
        """Hands the state to the shard at the address, which then is the twin.

        Raises:
            TransportError: the other did not answer, or was released meanwhile.
            ShardRefusedError: the other cannot take it, or there is no way to it.
            ProcessLostError: the other serves by itself.
        """
        self.release()
        if self._connect is None:
            raise ShardRefusedError(self._shard, "no_way", "it knows no way to other shards")
        link = _Link(self._connect(address))
        with self._lock:
            self._link, ended = link, self._ended
        try:
            if ended:
                raise self._lost("it is ending")
            incarnation = link.service.adopt(state(), source)
            with self._lock:
                if self._link is not link or link.over.is_set():
                    raise TransportError(self._shard, "RELEASED", "the twin was released meanwhile")
                link.incarnation = incarnation
        except BaseException as error:
            self._drop(link)
            if isinstance(error, ShardRefusedError) and error.reason == PROMOTED:
                raise self._fenced() from error
            if isinstance(error, ProcessLostError) and not ended:  # the twin was, in this process
                raise TransportError(self._shard, "LOST", str(error)) from error
            raise

    def release(self) -> None:
        """There is no twin any more; never waits."""
        link = self._link
        if link is not None:
            self._drop(link)

    def end(self) -> None:
        """The shard ends: what the twin does not have yet is never acknowledged."""
        with self._lock:
            self._ended = True
            link = self._link
        if link is not None:
            link.end()

    def mirror(self, push: Push, clock: int, staleness: int | None) -> None:
        """Returns when the twin has the push, or there is no twin.

        Raises:
            ProcessLostError: this shard has been given up, or has ended before the twin had it.
        """
        self._hand(lambda twin: twin.mirror(push, clock=clock, staleness=staleness))

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """Returns when the twin has marked the items, or there is no twin; raises as above."""
        self._hand(lambda twin: twin.mirror_set_aside(items, reason))

    def _hand(self, call: Callable[[TwinService], None]) -> None:
        pause_s = FIRST_PAUSE_S
        while (link := self._link) is not None:
            if self._ended:
                raise self._lost("it has ended before its twin had an item")
            if link.over.is_set():
                continue  # it was released just now
            try:
                return call(link.service)
            except ShardRefusedError as error:
                if error.reason == PROMOTED:
                    raise self._fenced() from error
                self._drop(link)
            except (TransportError, ProcessLostError):
                link.over.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return None

    def _drop(self, link: _Link) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
        link.end()

    def _fenced(self) -> ProcessLostError:
        return self._lost("its twin serves in its place")

    def _lost(self, cause: str) -> ProcessLostError:
        return ProcessLostError(f"shard {self._shard}", cause)
