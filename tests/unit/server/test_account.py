"""A shard's account, its sets held against plain sets."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.server.account import (
    MAX_MISSING,
    STALENESS_SMOOTHING,
    Account,
    accounted,
    accounted_by,
    intervals_of,
    merged,
)
from distbelief.server.applied import ItemSet
from distbelief.types import Push, ShardState

MakePush = Callable[..., Push]
items = st.sets(st.integers(0, 25))


def item_set(plain: set[int]) -> ItemSet:
    found = ItemSet()
    for item in plain:
        found.add(item)
    return found


def account_of(applied: set[int], aside: set[int] | None = None, **changes: Any) -> Account:
    fields: dict[str, Any] = {
        "clock": len(applied),
        "examples": 10 * len(applied),
        "applied": item_set(applied),
        "set_aside": {item: f"why {item}" for item in aside or ()},
    }
    return Account(**{**fields, **changes})


@settings(deadline=None, max_examples=200)
@given(wanted=items, applied=items, aside=items)
def test_what_is_missing(wanted: set[int], applied: set[int], aside: set[int]) -> None:
    account = account_of(applied, aside)
    assert account.missing(item_set(wanted).intervals) == wanted - applied - aside
    assert account.missing(()) == set()


@settings(deadline=None, max_examples=200)
@given(applied=items, aside=items)
def test_what_is_accounted_for(applied: set[int], aside: set[int]) -> None:
    account = account_of(applied, aside)
    found = accounted(account.applied, account.set_aside)
    assert found == item_set(applied | aside)
    assert {item for item in range(30) if item in account} == applied | aside
    state = ShardState(
        shard=0,
        incarnation=1,
        begin=0,
        end=4,
        loaded=True,
        clock=0,
        examples=0,
        skipped=0,
        applied=account.applied.intervals,
        set_aside=account.set_aside,
        repeated=0,
    )
    assert accounted_by(state) == found
    assert accounted(account.applied, {}).intervals == account.applied.intervals


def test_the_account_is_left_as_it_was() -> None:
    account = account_of({0, 1, 5}, {3})
    before = account.to_dict()
    account.missing(((0, 9),))
    accounted(account.applied, account.set_aside)
    assert account.to_dict() == before


def test_a_push_is_noted(make_push: MakePush) -> None:
    account = Account()
    account.add(make_push(4, rate=0.5, examples=8, skipped=(7, 9)), 3)
    account.add(make_push(5, rate=0.25), None)
    account.add(make_push(2, rate=0.125), 0)
    assert (account.clock, account.examples, account.skipped) == (3, 28, 2)
    assert account.applied.intervals == ((2, 3), (4, 6))
    assert (account.rate, account.staleness) == (0.125, {3: 1, 0: 1})
    expected = 3 * STALENESS_SMOOTHING
    expected += STALENESS_SMOOTHING * (0 - expected)
    assert account.expected_staleness == expected


@settings(deadline=None, max_examples=50)
@given(
    applied=items,
    aside=items,
    counts=st.tuples(*3 * [st.integers(0, 2**60)]),
    rate=st.floats(0, 1e9),
    staleness=st.dictionaries(st.integers(0, 99), st.integers(1, 2**40)),
    refused=st.dictionaries(st.sampled_from(["stale", "norm"]), st.integers(1, 9)),
)
def test_an_account_survives_json_exactly(
    applied: set[int],
    aside: set[int],
    counts: tuple[int, int, int],
    rate: float,
    staleness: dict[int, int],
    refused: dict[str, int],
) -> None:
    account = account_of(
        applied,
        aside,
        examples=counts[0],
        skipped=counts[1],
        repeated=counts[2],
        rate=rate,
        expected_staleness=rate / 3,
        staleness=Counter(staleness),
        refused=Counter(refused),
    )
    assert Account.from_dict(json.loads(json.dumps(account.to_dict()))) == account


@pytest.mark.parametrize("values", [[[0, 3], [5, 6]], ((0, 3), (5, 6))])
def test_intervals_of_json(values: Any) -> None:
    assert intervals_of(values) == ((0, 3), (5, 6))


# Accounts of several shards


@st.composite
def alike(draw: st.DrawFn) -> list[tuple[set[int], set[int]]]:
    """Applied and set-aside items of shards that account for the same items."""
    done = draw(items)
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        aside = {item for item in done if draw(st.integers(0, 4)) == 0}
        parts.append((done - aside, aside))
    return parts


@settings(deadline=None, max_examples=200)
@given(alike())
def test_a_merged_account_has_applied_what_any_has_applied(
    parts: list[tuple[set[int], set[int]]],
) -> None:
    accounts = [account_of(applied, aside) for applied, aside in parts]
    found = merged(accounts, [True] * len(accounts))
    applied = set().union(*(applied for applied, _ in parts))
    done = parts[0][0] | parts[0][1]
    assert set(found.applied) == applied
    assert set(found.set_aside) == done - applied
    assert found.clock == len(applied)
    assert accounted(found.applied, found.set_aside) == item_set(done)
    assert all(why == f"why {item}" for item, why in found.set_aside.items())


def test_what_a_merged_account_takes_from_whom() -> None:
    largest = account_of({0, 1}, rate=0.5, expected_staleness=1.5, examples=19, skipped=1)
    largest.refused["norm"], largest.staleness[2], largest.repeated = 1, 5, 4
    other = account_of({0, 1}, rate=0.25, expected_staleness=9.0, examples=20)
    other.refused["norm"], other.refused["stale"], other.staleness[2] = 2, 3, 1
    other.repeated = 8
    found = merged([largest, other], [True, True])
    assert (found.rate, found.expected_staleness) == (0.5, 1.5)
    assert (found.clock, found.examples, found.skipped) == (2, 20, 1)
    assert (found.repeated, found.refused, found.staleness) == (
        12,
        {"norm": 3, "stale": 3},
        {2: 6},
    )
    alone = merged([largest, other], [False, True])
    assert (alone.repeated, alone.refused, alone.staleness) == (
        8,
        {"norm": 2, "stale": 3},
        {2: 1},
    )
    none = merged([largest, other], [False, False])
    assert (none.repeated, none.refused, none.staleness) == (0, {}, {})


def test_merging_leaves_the_accounts_as_they_were() -> None:
    accounts = [account_of({0, 2}, {1}), account_of({0, 1}, {2})]
    before = [account.to_dict() for account in accounts]
    found = merged(accounts, [True, True])
    found.applied.add(9)
    found.set_aside[7] = "why"
    assert [account.to_dict() for account in accounts] == before


def test_what_no_snapshot_could_wait_for_is_not_counted_out() -> None:
    account = Account(applied=ItemSet(((0, 10),)))
    assert account.missing(((0, 10 + MAX_MISSING),)) == set(range(10, 10 + MAX_MISSING))
    for end in (11 + MAX_MISSING, 2**63, 2**64 - 1):
        with pytest.raises(OverflowError, match=f"{end - 10} items are missing"):
            account.missing(((0, end),))
