"""A link to a shard that loses messages, delays them, repeats them and delivers them late."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from distbelief.errors import DistBeliefError, TransportError
from distbelief.services import ShardService
from distbelief.types import Intervals, Push, PushReply, ShardFile, ShardState, Version, Weights

T = TypeVar("T")

DISTANCES = (1, 1, 2, 3, 5, 8, 40)
"""A late push comes after so many later calls: most soon, one in a while when it is long over."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one call.

    Attributes:
        cut: The link is down: the caller is told of a loss, and nothing else happens.
        delay_s: It takes so much longer.
        drop_before: It is lost on its way there.
        held: A push is lost to its caller, and comes late.
        repeat: It comes twice, one right after the other.
        drop_after: It is carried out, and its answer is lost.
        late_after: A copy of a push comes after so many later calls; 0 for none.
    """

    cut: bool = False
    delay_s: float = 0.0
    drop_before: bool = False
    held: bool = False
    repeat: bool = False
    drop_after: bool = False
    late_after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """How bad a link is: plain values. Fetches and pushes are counted, together and from 1.

    Attributes:
        seed: What happens to a call depends on it and on the call's number alone.
        repeat: Share of the calls that come twice.
        drop_before: Share of those that are lost before they are carried out.
        drop_after: Share of those whose answer is lost.
        late: Share of the pushes of which a copy is delivered after later calls.
        held: Share of the pushes that others overtake: the caller is told of a loss, tries again,
            and the first attempt is delivered after that and later calls.
        delay_s: Calls take up to so many seconds longer.
        cut: Ranges of calls, from the first and up to the second number, that all fail.
    """

    seed: int
    repeat: float = 0.0
    drop_before: float = 0.0
    drop_after: float = 0.0
    late: float = 0.0
    held: float = 0.0
    delay_s: float = 0.0
    cut: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("repeat", "drop_before", "drop_after", "late", "held"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share, from 0 to 1, not {getattr(self, name)}")
        if self.delay_s < 0:
            raise ValueError(f"delay_s cannot be {self.delay_s}")

    def fate(self, call: int) -> Fate:
        """What happens to that call."""
        if any(begin <= call < end for begin, end in self.cut):
            return Fate(cut=True)
        draw = random.Random(f"{self.seed} {call}")
        repeat, before, after, late, held, delay = (draw.random() for _ in range(6))
        distance = draw.choice(DISTANCES)
        is_held = held < self.held
        return Fate(
            delay_s=delay * self.delay_s,
            drop_before=before < self.drop_before,
            held=is_held,
            repeat=repeat < self.repeat,
            drop_after=after < self.drop_after,
            late_after=distance if is_held or late < self.late else 0,
        )


class FaultyLink:
    """Satisfies :class:`~distbelief.services.ShardService` around another one. Thread-safe.

    Fetches and pushes meet what the plan has for them; all other calls pass. A push that is
    delivered late comes in the thread of the call that it comes after, which returns when the shard
    has answered it; nobody looks at that answer.

    Args:
        shard: Which shard, for the errors.
        service: Where it leads.
        faults: What happens.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        shard: int,
        service: ShardService,
        faults: LinkFaults,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shard = shard
        self._service = service
        self._faults = faults
        self._sleep = sleep
        self._lock = threading.Lock()
        self._n_calls = 0
        self._late: list[tuple[int, Push]] = []
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """What was done; what has not happened is not there.

        ``calls`` in all, of which some were ``cut``, ``delayed``, ``dropped_before``, ``held``,
        ``repeated`` or ``dropped_after``; copies ``kept`` to come late, those ``delivered`` so far,
        and those ``in_vain``, repeats included, to which the shard gave no answer.
        """
        with self._lock:
            return dict(self._counts)

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.services.ParameterService`."""
        call, fate = self._next()
        try:
            self._set_out(fate)
            # What comes is lost, and the caller's buffer may hold anything.
            into = out.fill_(float("nan")).clone() if fate.drop_after else out
            version = self._service.fetch(into, begin=begin, weights=weights, unless=unless)
            if fate.repeat:
                again = out.clone()
                self._repeat(lambda: self._service.fetch(again, begin=begin, weights=weights))
            return self._come_back(fate, version)
        finally:
            self._deliver(call)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.services.ParameterService`."""
        call, fate = self._next()
        try:
            if fate.late_after:
                self._keep(call + fate.late_after, push)
            if fate.held:
                raise self._lost("held")
            self._set_out(fate)
            again = _copy(push) if fate.repeat else None
            if fate.drop_after:  # the caller will need its gradient once more
                push = _copy(push)
                fetch_into = None if fetch_into is None else fetch_into.clone()
            reply = self._service.push(push, fetch_into=fetch_into)
            if again is not None:
                repeated = again
                self._repeat(lambda: self._service.push(repeated))
            return self._come_back(fate, reply)
        finally:
            self._deliver(call)

    def deliver_all(self) -> None:
        """Delivers every late push that has not come yet, in the order in which they are due."""
        with self._lock:
            last = max((due for due, _ in self._late), default=0)
        self._deliver(last)

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._service.load(values)

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._service.set_aside(items, reason)

    def state(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._service.state()

    def pause(self, seconds: float) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._service.pause(seconds)

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """See :class:`~distbelief.services.ShardService`."""
        return self._service.save(snapshot, items, seconds)

    def feed_twin(self, address: str) -> Version:
        """See :class:`~distbelief.services.ShardService`."""
        return self._service.feed_twin(address)

    def release_twin(self) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._service.release_twin()

    def promote(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        return self._service.promote()

    def _next(self) -> tuple[int, Fate]:
        with self._lock:
            self._n_calls += 1
            self._counts["calls"] += 1
            call = self._n_calls
        return call, self._faults.fate(call)

    def _set_out(self, fate: Fate) -> None:
        if fate.cut:
            raise self._lost("cut")
        if fate.delay_s:
            self._note("delayed")
            self._sleep(fate.delay_s)
        if fate.drop_before:
            raise self._lost("dropped_before")

    def _come_back(self, fate: Fate, answer: T) -> T:
        if fate.drop_after:
            raise self._lost("dropped_after")
        return answer

    def _repeat(self, call: Callable[[], object]) -> None:
        """Whatever it brings is nobody's any more."""
        self._note("repeated")
        try:
            call()
        except DistBeliefError:
            self._note("in_vain")

    def _keep(self, due: int, push: Push) -> None:
        with self._lock:
            self._counts["kept"] += 1
            self._late.append((due, _copy(push)))

    def _deliver(self, call: int) -> None:
        with self._lock:
            due = sorted((late for late in self._late if late[0] <= call), key=lambda late: late[0])
            self._late = [late for late in self._late if late[0] > call]
        for _, push in due:
            self._note("delivered")
            try:
                self._service.push(push)
            except DistBeliefError:
                self._note("in_vain")

    def _lost(self, how: str) -> TransportError:
        self._note(how)
        return TransportError(self._shard, "UNAVAILABLE", f"{how.replace('_', ' ')} on its way")

    def _note(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


def _copy(push: Push) -> Push:
    """One whose gradient stays as it is, whatever becomes of the caller's buffer."""
    return replace(push, gradient=push.gradient.clone())
