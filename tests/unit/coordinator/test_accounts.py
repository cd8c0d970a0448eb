"""The shards as they were last seen."""

from typing import Any

import pytest

from distbelief.coordinator.accounts import Forgotten, ShardAccounts
from distbelief.server.applied import ItemSet
from distbelief.types import Intervals, ShardState


def state(shard: int, *applied: tuple[int, int], **fields: Any) -> ShardState:
    values: dict[str, Any] = {
        "shard": shard,
        "incarnation": 1,
        "begin": shard,
        "end": shard + 1,
        "loaded": True,
        "clock": sum(end - begin for begin, end in applied),
        "examples": 0,
        "skipped": 0,
        "applied": applied,
        "set_aside": {},
        "repeated": 0,
    }
    return ShardState(**{**values, **fields})


def test_what_is_done_follows_the_shards_up_and_down() -> None:
    accounts = ShardAccounts(2)
    assert accounts.done == ItemSet()

    def see(*states: ShardState) -> tuple[Intervals, Intervals]:
        gained, lost = accounts.see(states)
        return gained.intervals, lost.intervals

    assert see(state(0, (0, 9)), state(1, (0, 4), (6, 8))) == (((0, 4), (6, 8)), ())
    assert see(state(0, (0, 9)), state(1, (0, 7), (8, 9))) == (((4, 6), (8, 9)), ((7, 8),))
    assert accounts.done.intervals == ((0, 7), (8, 9))
    # One of them alone: the other stands as it was.
    assert see(state(0, (0, 2), incarnation=2)) == ((), ((2, 7), (8, 9)))
    assert accounts.done.intervals == ((0, 2),)


@pytest.mark.parametrize(
    ("after", "forgotten"),
    [
        (state(0, (0, 10)), []),
        (state(0, (0, 10), incarnation=2), []),  # a twin that took over
        (state(0, (0, 12), incarnation=2, clock=12), []),
        (state(0, (0, 4), (6, 8), incarnation=3), [Forgotten(0, 3, 4, 9, 6)]),
        (state(0, (0, 9), incarnation=2), [Forgotten(0, 2, 1, 9, 9)]),  # what it had set aside
        (state(0, (0, 3), (20, 30), incarnation=2), [Forgotten(0, 2, 7, 9, 13)]),
        (state(0, incarnation=2), [Forgotten(0, 2, 10, 9, 0)]),
    ],
)
def test_what_another_start_of_a_shard_lacks_is_counted(
    after: ShardState, forgotten: list[Forgotten]
) -> None:
    accounts = ShardAccounts(1)
    accounts.see([state(0, (0, 9), set_aside={9: "why"})])
    assert accounts.take_forgotten() == []  # of the first look nothing is known
    accounts.see([after])
    accounts.see([after])
    assert accounts.take_forgotten() == forgotten
    assert accounts.take_forgotten() == []


def test_the_word_of_a_start_that_was_replaced_is_passed_over() -> None:
    accounts = ShardAccounts(1)
    accounts.see([state(0, (0, 4), incarnation=3)])
    gained, lost = accounts.see([state(0, (0, 9), incarnation=2)])
    assert (gained, lost, accounts.done.below) == (ItemSet(), ItemSet(), 4)
    assert accounts.take_forgotten() == []


def test_set_aside_is_what_any_shard_has_and_not_all_have_applied() -> None:
    accounts = ShardAccounts(2)
    accounts.see(
        [
            state(0, (0, 3), set_aside={3: "a", 4: "b"}),
            state(1, (0, 4), set_aside={2: "c", 5: "d"}),
        ]
    )
    assert accounts.set_aside() == {3: "a", 4: "b", 5: "d"}
    assert (accounts.applied(2), accounts.applied(3)) == (True, False)
