"""The exchange with the shards: one thread for each, one push and one fetch in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

import torch

from distbelief.errors import ShardRefusedError, TransportError, as_distbelief_error
from distbelief.faults.points import NONE, Injector
from distbelief.services import ParameterService
from distbelief.types import LeasedItem, Push, PushReply, Refusal, Version, Weights

T = TypeVar("T")

FATAL = frozenset({Refusal.LAYOUT, Refusal.SIZE, Refusal.RATE})
"""Refusals that no other replica and no later moment can mend."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class ShardPort:
    """A shard, or a range of one, as a replica reaches it.

    ``begin`` and ``end`` count in the flat vector; ``at`` is where ``begin`` lies in the vectors
    that are exchanged, which for a stage are a part of that; by default they are the whole.
    """

    service: ParameterService
    shard: int
    begin: int
    end: int
    incarnation: int
    at: int | None = None

    @property
    def local(self) -> slice:
        """The range in the vectors that are exchanged."""
        at = self.begin if self.at is None else self.at
        return slice(at, at + self.end - self.begin)


def ports_of(ports: Sequence[ShardPort], ranges: Sequence[tuple[int, int]]) -> list[ShardPort]:
    """The ports of a stage: for each of its ranges, the part of each shard that it overlaps.

    Args:
        ports: The shards.
        ranges: The stage's ranges of the flat vector, in the order in which its own vector has
            them.
    """
    found, at = [], 0
    for begin, end in ranges:
        for port in ports:
            low, high = max(begin, port.begin), min(end, port.end)
            if low < high:
                found.append(replace(port, begin=low, end=high, at=at + low - begin))
        at += end - begin
    return found


@dataclass(frozen=True, slots=True)
class Gradient:
    """An item's gradient, ready to be pushed.

    ``values`` is ``(size,) float32`` on the CPU; ``base`` has a version for each port.
    """

    item: LeasedItem
    values: torch.Tensor
    base: tuple[Version, ...]
    examples: int
    skipped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The outcome of one exchange.

    Attributes:
        refusal: Why a shard refused its part of the push, or empty.
        versions: Each shard's version of what was fetched, or None if nothing was.
    """

    refusal: str
    versions: tuple[Version, ...] | None


class Exchange:
    """Pushes to and fetches from several shards at once; a context manager, for one thread.

    A call that gets no answer is tried again, which is harmless, until ``patience_s`` have passed.
    """

    def __init__(
        self,
        ports: Sequence[ShardPort],
        *,
        layout: str,
        replica: int,
        patience_s: float,
        weights: Weights = Weights.LATEST,
        injector: Injector = NONE,
    ) -> None:
        self._ports = tuple(ports)
        self._injector = injector
        self._layout = layout
        self._replica = replica
        self._patience_s = patience_s
        self._weights = weights
        self._closing = threading.Event()
        # One after the other if something is to happen between two of them.
        n_at_once = 1 if injector.plans("between_shards_of_a_push") else len(ports)
        self._pool = ThreadPoolExecutor(n_at_once, thread_name_prefix=f"replica-{replica}-exchange")

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._pool.shutdown()

    def start(self, gradient: Gradient | None, fetch_into: torch.Tensor | None) -> Pending:
        """Begins to push ``gradient``, to fetch into ``fetch_into``, or both in one round trip.

        Both vectors are the exchange's until the result of what is returned has been taken.
        """
        return Pending(
            [
                self._pool.submit(self._exchange_one, at, port, gradient, fetch_into)
                for at, port in enumerate(self._ports)
            ]
        )

    def _exchange_one(
        self, at: int, port: ShardPort, gradient: Gradient | None, fetch_into: torch.Tensor | None
    ) -> PushReply | Version:
        into = None if fetch_into is None else fetch_into[port.local]
        if gradient is None:
            assert into is not None
            return self._fetch(port, into)
        push = Push(
            item=gradient.item.number,
            lease=gradient.item.lease,
            replica=self._replica,
            begin=port.begin,
            incarnation=port.incarnation,
            base=gradient.base[at],
            rate=gradient.item.rate,
            examples=gradient.examples,
            skipped=gradient.skipped,
            layout=self._layout,
            gradient=gradient.values[port.local],
        )
        if at > 0:
            self._injector.at("between_shards_of_a_push")
        reply = self._patiently(lambda: port.service.push(push, fetch_into=into))
        if reply.refusal in FATAL:
            raise ShardRefusedError(port.shard, reply.refusal, reply.detail)
        if into is not None and reply.fetched is None:
            return replace(reply, fetched=self._fetch(port, into))
        return reply

    def _fetch(self, port: ShardPort, into: torch.Tensor) -> Version:
        return self._patiently(
            lambda: port.service.fetch(into, begin=port.begin, weights=self._weights)
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        give_up_at = time.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except TransportError:
                if time.monotonic() + pause_s > give_up_at or self._closing.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Pending:
    """An exchange under way."""

    def __init__(self, parts: list[Future[PushReply | Version]]) -> None:
        self._parts = parts

    def done(self) -> bool:
        """Whether every shard has answered."""
        return all(part.done() for part in self._parts)

    def result(self) -> Exchanged:
        """Waits for every shard, and raises if one could not be reached."""
        errors = [error for part in self._parts if (error := part.exception()) is not None]
        if errors:
            if not isinstance(errors[0], Exception):  # no error, but the end of this process
                raise errors[0]
            raise as_distbelief_error(errors[0]) from errors[0]
        refusal = ""
        versions: list[Version] = []
        for part in self._parts:
            answer = part.result()
            if isinstance(answer, Version):
                versions.append(answer)
                continue
            refusal = refusal or (answer.refusal or "")
            if answer.fetched is not None:
                versions.append(answer.fetched)
        whole = len(versions) == len(self._parts)
        return Exchanged(refusal, tuple(versions) if whole else None)
