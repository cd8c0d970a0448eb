"""The way to a shard, whichever start of it serves at present."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, TypeVar

import torch

from distbelief.errors import DataError, ProcessLostError, ShardRefusedError, TransportError
from distbelief.services import ShardService
from distbelief.serving import Endpoint, Serving, read_serving
from distbelief.storage import Storage
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    Refusal,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

T = TypeVar("T")

LOOK_S = 0.2
"""The file is not read more often, however many calls fail."""

LONG_CALL_S = 1.0
"""While a call lasts longer, the file is read now and then: the shard may have been given up."""

WATCH_S = 0.5
PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Found:
    """The start of a shard that serves, and which one it is."""

    service: ShardService
    incarnation: int


class Directory(Protocol):
    """Knows where each shard serves. Thread-safe."""

    def find(self, shard: int) -> Found:
        """Where it serves, as far as is known; does not block."""
        ...

    def look(self) -> None:
        """Finds out whether something has changed; returns soon."""
        ...

    @contextmanager
    def calling(self) -> Iterator[None]:
        """A call is under way for the time of the block."""
        ...


class Client(ShardService, Protocol):
    """A shard at an address; closing it ends the calls that are under way."""

    def close(self) -> None:
        """Ends it."""
        ...


class FileDirectory:
    """Satisfies :class:`Directory` by ``serving.json``; a context manager around a thread.

    Args:
        storage: The run's folder.
        serving: What it said when this process was started.
        connect: Makes a client for an endpoint; sends nothing.
    """

    def __init__(
        self, storage: Storage, serving: Serving, connect: Callable[[Endpoint], Client]
    ) -> None:
        self._storage = storage
        self._serving = serving
        self._connect = connect
        self._clients: dict[tuple[int, int], Client] = {}
        self._calls: dict[object, float] = {}
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="directory", daemon=True)

    def __enter__(self) -> FileDirectory:
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
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    @property
    def serving(self) -> Serving:
        """Who serves, as far as is known."""
        return self._serving

    def find(self, shard: int) -> Found:
        """See :class:`Directory`."""
        with self._lock:
            if self._closing.is_set():
                raise TransportError(shard, "CLOSED", "this process is ending")
            endpoint = self._serving.shards[shard]
            key = shard, endpoint.incarnation
            if key not in self._clients:
                self._clients[key] = self._connect(endpoint)
            return Found(self._clients[key], endpoint.incarnation)

    def look(self) -> None:
        """See :class:`Directory`."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < LOOK_S:
                return
            self._looked_at = now
        try:
            found = read_serving(self._storage)
        except (OSError, DataError):
            return  # whoever asked tries again, and so does this
        if found is not None:
            self._take(found)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """See :class:`Directory`."""
        call = object()
        self._calls[call] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[call]

    def _take(self, found: Serving) -> None:
        with self._lock:
            if (found.run, found.number) <= (self._serving.run, self._serving.number):
                return
            self._serving = found
            serve = {(e.shard, e.incarnation) for e in found.shards}
            gone = [self._clients.pop(key) for key in list(self._clients) if key not in serve]
        for client in gone:
            client.close()

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            began = min(list(self._calls.values()), default=None)
            if began is not None and time.monotonic() - began > LONG_CALL_S:
                self.look()


class RoutedShard:
    """Satisfies :class:`~distbelief.services.ShardService` wherever the shard serves just now.

    Calls that fail since it has moved, or is away, raise TransportError as any other: the same call
    again goes where it serves by then. A push is stamped with the incarnation that it goes to.

    Args:
        shard: Which one.
        directory: Knows where it serves.
        patience_s: A fetch is tried again by itself for so long.
    """

    def __init__(self, shard: int, directory: Directory, *, patience_s: float = 0.0) -> None:
        self._shard = shard
        self._directory = directory
        self._patience_s = patience_s

    @property
    def incarnation(self) -> int:
        """Of the shard that serves, as far as is known."""
        return self._directory.find(self._shard).incarnation

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.services.ParameterService`."""
        give_up_at = time.monotonic() + self._patience_s
        while True:
            try:
                return self._call(
                    lambda found: found.service.fetch(
                        out, begin=begin, weights=weights, unless=unless
                    )
                )
            except TransportError:
                if time.monotonic() + PAUSE_S > give_up_at:
                    raise
                time.sleep(PAUSE_S)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.services.ParameterService`."""

        def send(found: Found) -> PushReply:
            addressed = replace(push, incarnation=found.incarnation)
            reply = found.service.push(addressed, fetch_into=fetch_into)
            if reply.refusal is Refusal.INCARNATION:
                raise TransportError(self._shard, "MOVED", reply.detail)
            return reply

        return self._call(send)

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._call(lambda found: found.service.load(values))

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._call(lambda found: found.service.set_aside(items, reason))

    def state(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._call(lambda found: found.service.state())

    def pause(self, seconds: float) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._call(lambda found: found.service.pause(seconds))

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """See :class:`~distbelief.services.ShardService`."""
        return self._call(lambda found: found.service.save(snapshot, items, seconds))

    def feed_twin(self, address: str) -> Version:
        """See :class:`~distbelief.services.ShardService`."""
        return self._call(lambda found: found.service.feed_twin(address))

    def release_twin(self) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._call(lambda found: found.service.release_twin())

    def promote(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._call(lambda found: found.service.promote())

    def _call(self, call: Callable[[Found], T]) -> T:
        found: Found | None = None
        try:
            with self._directory.calling():
                found = self._directory.find(self._shard)
                return call(found)
        except ShardRefusedError as error:
            self._directory.look()
            moved = self._directory.find(self._shard).incarnation != getattr(
                found, "incarnation", 0
            )
            if not moved:
                raise
            # Another one may have the port of what was there.
            raise TransportError(self._shard, "MOVED", str(error)) from error
        except ProcessLostError as error:  # of a shard in this very process
            self._directory.look()
            raise TransportError(self._shard, "UNAVAILABLE", str(error)) from error
        except TransportError:
            self._directory.look()
            raise
