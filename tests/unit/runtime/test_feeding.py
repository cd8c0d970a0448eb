"""Twins being fed, and twins that are fed no more; shards are stand-ins that wait as told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distbelief.errors import RunError, ShardRefusedError, TransportError
from distbelief.observe.report import Report
from distbelief.runtime.feeding import DOUBT_S, Fed, Feeding, Unfed
from distbelief.serving import Endpoint, Serving

DEADLINE_S = 20.0
AWAY = TransportError(0, "UNAVAILABLE", "nobody there")


def at(shard: int, incarnation: int) -> Endpoint:
    return Endpoint(shard, 0, 4, incarnation, f"{shard}.{incarnation}")


class Shards:
    """Takes note of who feeds whom; a client that is closed ends the call that it has under way."""

    def __init__(self) -> None:
        self.fed: list[str] = []
        self.closed: list[str] = []
        self.released: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        self.over = threading.Semaphore(0)

    @contextmanager
    def shard_at(self, endpoint: Endpoint) -> Iterator[Any]:
        ended = threading.Event()

        def feed_twin(address: str) -> None:
            assert endpoint.address in self.released, "it may be waiting for a former twin"
            self.fed.append(f"{endpoint.address} -> {address}")
            try:
                gate = self.gates.get(address)
                give_up_at = time.monotonic() + DEADLINE_S
                while gate is not None and not gate.wait(0.001):
                    assert time.monotonic() < give_up_at
                    if ended.is_set():
                        raise AWAY
                if address in self.errors:
                    raise self.errors[address]
            finally:
                self.over.release()

        yield SimpleNamespace(
            feed_twin=feed_twin,
            release_twin=lambda: self.released.append(endpoint.address),
        )
        self.closed.append(endpoint.address)
        ended.set()

    def await_calls(self, n: int) -> None:
        """Returns when so many more calls are over."""
        for _ in range(n):
            assert self.over.acquire(timeout=DEADLINE_S)


@pytest.fixture
def shards() -> Shards:
    return Shards()


@pytest.fixture
def feeding(shards: Shards) -> Iterator[Feeding]:
    feeding = Feeding(2, shards.shard_at)
    yield feeding
    feeding.close()


def all_over(feeding: Feeding, n: int) -> list[Fed]:
    """The next ``n`` that come to their end, in the order of their twins."""
    found: list[Fed] = []
    give_up_at = time.monotonic() + DEADLINE_S
    while len(found) < n:
        assert time.monotonic() < give_up_at, "they never end"
        found += feeding.over()
        time.sleep(0.001)
    return sorted(found, key=lambda fed: fed.twin.address)


def test_each_end_is_told_once(shards: Shards, feeding: Feeding) -> None:
    for shard in range(2):
        feeding.begin(at(shard, 1), at(shard, 2))
    assert all_over(feeding, 2) == [Fed(at(k, 1), at(k, 2), None) for k in range(2)]
    assert sorted(shards.fed) == ["0.1 -> 0.2", "1.1 -> 1.2"]
    assert sorted(shards.closed) == ["0.1", "1.1"]
    assert feeding.over() == []


def test_one_that_takes_its_time_holds_up_no_other(shards: Shards, feeding: Feeding) -> None:
    gate = shards.gates["0.2"] = threading.Event()
    feeding.begin(at(0, 1), at(0, 2))
    feeding.begin(at(1, 1), at(1, 2))
    assert [fed.twin for fed in all_over(feeding, 1)] == [at(1, 2)]
    assert [feeding.twin_of(shard) for shard in range(2)] == [at(0, 2), None]
    gate.set()
    assert [fed.twin for fed in all_over(feeding, 1)] == [at(0, 2)]
    assert feeding.twin_of(0) is None


@pytest.mark.parametrize("error", [AWAY, ShardRefusedError(0, "promoted", "it serves")])
def test_a_shards_trouble_is_told(error: RunError, shards: Shards, feeding: Feeding) -> None:
    shards.errors["0.2"] = error
    feeding.begin(at(0, 1), at(0, 2))
    assert all_over(feeding, 1) == [Fed(at(0, 1), at(0, 2), error)]
    assert shards.closed == ["0.1"]


def test_a_bug_is_raised_and_not_taken_for_a_shards_trouble(
    shards: Shards, feeding: Feeding
) -> None:
    shards.errors["0.2"] = ZeroDivisionError("a bug")
    feeding.begin(at(0, 1), at(0, 2))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        all_over(feeding, 1)


def test_what_is_dropped_is_ended_and_not_told(shards: Shards, feeding: Feeding) -> None:
    for shard in range(2):
        shards.gates[f"{shard}.2"] = threading.Event()
        feeding.begin(at(shard, 1), at(shard, 2))
    feeding.drop(0)
    feeding.drop(0)
    assert shards.closed == ["0.1"]
    shards.await_calls(1)  # though nobody opened its gate
    assert feeding.twin_of(0) is None
    feeding.begin(at(0, 1), at(0, 3))
    shards.gates["1.2"].set()
    assert [fed.twin for fed in all_over(feeding, 2)] == [at(0, 3), at(1, 2)]


def test_hung_shards_leave_room_for_those_that_take_their_place(
    shards: Shards, feeding: Feeding
) -> None:
    """Of two shards each may hang three times, and feed at the fourth."""
    for incarnation in (2, 3, 4):
        for shard in range(2):
            shards.gates[f"{shard}.{incarnation}"] = threading.Event()
            feeding.begin(at(shard, 1), at(shard, incarnation))
    for shard in range(2):
        feeding.begin(at(shard, 1), at(shard, 5))
    assert [fed.twin for fed in all_over(feeding, 2)] == [at(0, 5), at(1, 5)]


def test_at_the_end_what_is_under_way_is_ended(shards: Shards) -> None:
    feeding = Feeding(2, shards.shard_at)
    for shard in range(2):
        shards.gates[f"{shard}.2"] = threading.Event()
        feeding.begin(at(shard, 1), at(shard, 2))
    while len(shards.fed) < 2:
        time.sleep(0.001)
    feeding.close()
    shards.await_calls(2)
    assert feeding.over() == []
    assert sorted(shards.closed) == ["0.1", "1.1"]


# Twins that are fed no more


class Looks:
    """Reports of a shard of which start 1 serves, and start 2 is its twin."""

    def __init__(self) -> None:
        self.unfed = Unfed()
        self.serving = Serving(number=1, run=1, shards=(at(0, 1),), twins=(at(0, 2),))
        self.now = 1000.0
        self.looks = 0

    def __call__(
        self, twin: int, *, after_s: float = 0.0, looks: int = 1, incarnation: int = 1
    ) -> list[Endpoint]:
        """What is found by a report of that start of the shard, which feeds ``twin``."""
        self.now += after_s
        self.looks += looks
        shards = ({"shard": 0, "incarnation": incarnation, "twin": twin},)
        report = cast(Report, SimpleNamespace(shards=shards, looks=self.looks))
        return self.unfed.found(report, self.serving, self.now)


@pytest.fixture
def look() -> Looks:
    return Looks()


LONG_S = 2 * DOUBT_S


def test_a_twin_that_is_fed_is_left_alone(look: Looks) -> None:
    assert [look(2, after_s=LONG_S) for _ in range(4)] == [[], [], [], []]


@pytest.mark.parametrize("feeds", [0, 3])
def test_one_that_is_not_is_told_after_a_while_and_once(feeds: int, look: Looks) -> None:
    assert look(feeds) == []
    assert look(feeds, after_s=DOUBT_S) == []
    assert look(feeds, after_s=0.5) == [at(0, 2)]
    # Whoever asked has seen to it; if not, it is told once more.
    assert look(feeds) == []
    assert look(feeds, after_s=LONG_S) == []
    assert look(feeds) == [at(0, 2)]


def test_it_must_have_been_looked_at_twice_since(look: Looks) -> None:
    """The report may be of before the twin was fed, however long ago that is."""
    assert look(0) == []
    assert look(0, after_s=LONG_S, looks=0) == []
    assert look(0, after_s=LONG_S, looks=1) == []
    assert look(0, looks=1) == [at(0, 2)]


def test_one_that_is_fed_meanwhile_is_in_doubt_anew(look: Looks) -> None:
    assert look(0) == []
    assert look(2, after_s=LONG_S) == []
    assert look(0, after_s=LONG_S) == []
    assert look(0) == []
    assert look(0, after_s=LONG_S) == [at(0, 2)]


def test_what_another_start_feeds_says_nothing(look: Looks) -> None:
    assert [look(0, after_s=LONG_S, incarnation=9) for _ in range(4)] == [[], [], [], []]


def test_a_twin_that_is_there_no_more_is_forgotten(look: Looks) -> None:
    assert look(0) == []
    look.serving = look.serving.changed(twins=())
    assert look(0, after_s=LONG_S) == []
    look.serving = look.serving.changed(twins=(at(0, 2),))
    assert look(0, after_s=LONG_S) == []
