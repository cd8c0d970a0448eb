"""When a recovery is complete, and what is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distbelief.observe.report import Report
from distbelief.runtime.recovery import Recoveries, Recovery


class Told:
    """The summary's recoveries, and the events."""

    def __init__(self) -> None:
        self.summary: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.recoveries = Recoveries(self.summary.append, self._emit, self.said.append)

    def _emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def count(self, *shards: tuple[int, int, int]) -> None:
        """A report comes: of each shard its number, its incarnation and what it forgot."""
        told = tuple({"shard": k, "incarnation": i, "forgotten": n} for k, i, n in shards)
        self.recoveries.count(cast(Report, SimpleNamespace(shards=told)))

    def counted(self) -> list[tuple[str, int | None]]:
        return [(told["what"], told["items_leased_again"]) for told in self.summary]


@pytest.fixture
def told() -> Told:
    return Told()


def of_shard(shard: int, incarnation: int) -> Recovery:
    return Recovery(
        what=f"shard {shard}",
        cause="killed",
        t=12.348,
        noticed_at=1000.0,
        how="snapshot",
        snapshot=3,
        seconds=1.504,
        incarnation=incarnation,
    )


def test_what_is_told_of_it(told: Told) -> None:
    recovery = of_shard(1, 2)
    recovery.items = 7
    told.recoveries.complete(recovery)
    event = {
        "what": "shard 1",
        "cause": "killed",
        "seconds": 1.5,
        "items_leased_again": 7,
        "how": "snapshot",
        "snapshot": 3,
    }
    assert told.summary == [{**event, "t": 12.35}]
    # An event has its own time.
    assert told.events == [{"kind": "recovered", **event}]


def test_what_is_not_known_is_told_as_nothing(told: Told) -> None:
    told.recoveries.complete(Recovery("the evaluator", "killed", 1.0, 1000.0))
    (summary,) = told.summary
    assert (summary["how"], summary["seconds"]) == ("anew", None)
    assert (summary["items_leased_again"], summary["snapshot"]) == (None, None)


def test_a_shard_is_counted_once_the_coordinator_has_seen_its_new_start(told: Told) -> None:
    told.recoveries.served(1, of_shard(1, 3))
    told.count()
    told.count((0, 9, 40))
    told.count((0, 9, 40), (1, 2, 50))
    assert (told.summary, told.events) == ([], [])
    told.count((0, 9, 40), (1, 3, 17))
    told.count((0, 9, 40), (1, 3, 17))
    assert told.counted() == [("shard 1", 17)]
    assert len(told.events) == 1


def test_one_that_has_died_again_before_it_was_counted_is_counted_with_the_next(
    told: Told,
) -> None:
    told.recoveries.served(1, of_shard(1, 3))
    told.count((1, 4, 21))
    assert told.counted() == [("shard 1", 21)]


def test_several_shards_each_have_their_own_count(told: Told) -> None:
    for shard in range(3):
        told.recoveries.served(shard, of_shard(shard, 2))
    told.count((0, 1, 5), (1, 2, 6), (2, 2, 0))
    assert told.counted() == [("shard 1", 6), ("shard 2", 0)]
    told.count((0, 2, 8), (1, 2, 6), (2, 2, 0))
    assert told.counted()[2:] == [("shard 0", 8)]


@pytest.mark.parametrize(
    ("what", "snapshot", "items", "said"),
    [
        ("the coordinator", None, None, "the coordinator serves again after 2.5 s"),
        (
            "shard 1",
            7,
            41,
            "shard 1 serves again after 2.5 s, from snapshot 7: 41 items are done again",
        ),
        (
            "shard 1",
            7,
            0,
            "shard 1 serves again after 2.5 s, from snapshot 7: nothing is done again",
        ),
    ],
)
def test_the_user_hears_of_it(
    what: str, snapshot: int | None, items: int | None, said: str
) -> None:
    told = Told()
    recovery = Recovery(what, "killed", 1.0, 0.0, snapshot=snapshot, seconds=2.5, items=items)
    told.recoveries.complete(recovery)
    assert told.said == [said]


def test_a_twin_that_took_over_has_been_told_of_already() -> None:
    told = Told()
    told.recoveries.complete(Recovery("shard 1", "killed", 1.0, 0.0, how="twin", seconds=0.1))
    assert told.said == []
