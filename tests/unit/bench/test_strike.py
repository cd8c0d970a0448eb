"""Which recovery an action has led to, and how long it took."""

from __future__ import annotations

from typing import Any

from distbelief.bench.strike import Measured, recovery_of


def told(what: str, t: float, seconds: float | None, **fields: Any) -> dict[str, Any]:
    return {"what": what, "t": t, "seconds": seconds, "items_leased_again": 3, **fields}


def test_seconds_count_from_the_deed() -> None:
    found = recovery_of([told("shard 0", 12.0, 0.5, how="twin")], "shard 0", 10.0)
    assert found == Measured(seconds=2.5, found_s=2.0, how="twin", items=3)


def test_others_and_older_ones_are_passed_over() -> None:
    entries = [
        told("shard 0", 5.0, 1.0),
        told("shard 1", 11.0, 1.0),
        told("shard 0", 12.0, None),
        told("shard 0", 14.0, 2.0),
    ]
    assert recovery_of(entries[:3], "shard 0", 10.0) is None
    assert recovery_of(entries, "shard 0", 10.0) == Measured(6.0, 4.0, "anew", 3)


def test_a_death_that_is_noticed_at_once_may_be_rounded_down() -> None:
    assert recovery_of([told("x", 9.995, 1.0)], "x", 10.0) == Measured(1.0, 0.0, "anew", 3)
