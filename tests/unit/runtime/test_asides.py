"""Items that are set aside, with shards that are away for a while."""

from __future__ import annotations

from typing import Any, cast

import pytest

from distbelief.errors import DataError, TransportError
from distbelief.runtime.asides import SHOWN, Asides
from distbelief.services import ShardService

AWAY = TransportError(1, "UNAVAILABLE", "nobody there")


class Shard:
    """Keeps what it was told; is away for its next calls."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.away = 0

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        if self.away:
            self.away -= 1
            raise AWAY
        self.told += [(item, reason) for item in items]


class Told:
    """Two shards, and the events."""

    def __init__(self, names_of: Any = lambda item: [f"{item}.jpg"]) -> None:
        self.shards = [Shard(), Shard()]
        self.events: list[dict[str, Any]] = []
        services = cast(list[ShardService], self.shards)
        self.asides = Asides(services, self.emit, names_of)

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


def test_every_shard_is_told_and_then_the_user() -> None:
    t = Told()
    t.asides.tell({4: "norm, 3 times", 9: "its replica died 3 times"})
    told = [(4, "norm, 3 times"), (9, "its replica died 3 times")]
    assert [shard.told for shard in t.shards] == [told, told]
    assert t.events == [
        {"kind": "set_aside", "item": item, "reason": reason, "files": [f"{item}.jpg"]}
        for item, reason in told
    ]
    t.asides.tell({})
    assert [shard.told for shard in t.shards] == [told, told]


def test_a_shard_that_is_away_is_told_by_the_next_call() -> None:
    t = Told()
    t.shards[1].away = 2
    with pytest.raises(TransportError):
        t.asides.tell({4: "a"})
    with pytest.raises(TransportError):
        t.asides.tell({9: "b"})
    assert t.events == []
    t.asides.tell({})
    assert t.shards[1].told == [(4, "a"), (9, "b")]
    assert set(t.shards[0].told) == {(4, "a"), (9, "b")}
    assert [event["item"] for event in t.events] == [4, 9]


def test_a_shard_that_forgot_is_told_again_and_the_user_is_not() -> None:
    t = Told()
    for _ in range(2):
        t.asides.tell({4: "a"})
    assert [shard.told for shard in t.shards] == 2 * [[(4, "a"), (4, "a")]]
    assert len(t.events) == 1


def test_no_more_than_a_few_examples_are_named() -> None:
    t = Told(lambda item: (f"{n}.jpg" for n in range(10**9)))
    t.asides.tell({4: "a"})
    assert t.events[0]["files"] == [f"{n}.jpg" for n in range(SHOWN)]


@pytest.mark.parametrize("error", [DataError("/data", "is gone"), OSError(5, "I/O error")])
def test_an_item_whose_examples_cannot_be_named_is_set_aside_all_the_same(
    error: Exception,
) -> None:
    def names_of(item: int) -> list[str]:
        raise error

    t = Told(names_of)
    t.asides.tell({4: "a"})
    assert t.events[0]["files"] == [f"cannot be named: {error}"]
    assert t.shards[0].told == [(4, "a")]
