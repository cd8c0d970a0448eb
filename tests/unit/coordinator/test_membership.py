"""Pace and lease sizes as tables."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.coordinator.membership import FIRST_LEASE, SHARE_OF_EPOCH, Member, Membership


def membership(*paces: float | None) -> Membership:
    return Membership(
        {i: Member(i, "host", 100 + i, 0.0, seconds_per_item=s) for i, s in enumerate(paces)}
    )


def wanted(m: Membership, replica: int = 0, **changes: Any) -> int:
    values = {"n_held": 0, "n_open": 1000, "items_per_epoch": 10_000, "lease_s": 20.0, **changes}
    return m.wanted(replica, **values)


@pytest.mark.parametrize(
    ("paces", "expected"),
    [
        ((), 0.0),
        ((None,), 0.0),
        ((0.5,), 2.0),
        ((0.5, 0.25), 6.0),
        ((0.5, None, 0.25, None), 12.0),  # those that are not known count as the others
    ],
)
def test_pace(paces: tuple[float | None, ...], expected: float) -> None:
    assert membership(*paces).pace() == expected


def test_those_who_left_have_no_pace() -> None:
    m = membership(0.5, 0.25, None)
    m.members[1].left = True
    assert m.pace() == 4.0  # of the first, and as much for the one that is not known
    m.members[0].left = True
    assert m.pace() == 0.0


def test_a_pace_of_no_time_at_all_is_one_that_is_not_known() -> None:
    m = membership(0.0, 0.5)
    assert wanted(m, n_held=1) == 1
    assert wanted(m, 1) == 50
    assert m.pace() == 4.0


@pytest.mark.parametrize(("n_held", "expected"), [(0, 2), (1, 1), (2, 0), (5, 0)])
def test_the_first_lease(n_held: int, expected: int) -> None:
    assert FIRST_LEASE == 2
    assert wanted(membership(None, 1.0), n_held=n_held) == expected


@pytest.mark.parametrize(
    ("seconds", "values", "expected"),
    [
        (1.0, {}, 25),  # a quarter more than asked for, to be topped up before it is low
        (1.0, {"n_held": 20}, 5),
        (1.0, {"n_held": 25}, 0),
        (1.0, {"n_held": 30}, 0),
        (1.0, {"lease_s": 8.0}, 10),
        (0.5, {}, 50),
        (0.4, {}, 63),  # rounded up
        (100.0, {}, 2),  # one to compute and one to load, however slow
        (100.0, {"n_held": 1}, 1),
        (1.0, {"n_open": 7}, 7),  # not more than there are
        (1.0, {"n_open": 7, "n_held": 5}, 2),
        (1.0, {"items_per_epoch": 20}, 15),  # three quarters of an epoch
        (1.0, {"items_per_epoch": 2}, 2),
    ],
)
def test_wanted_by_one(seconds: float, values: dict[str, Any], expected: int) -> None:
    assert wanted(membership(seconds), **values) == expected


@pytest.mark.parametrize(
    ("replica", "values", "expected"),
    [
        # 30 items at 3 a second last 10 s: 20 of the fast replica, 10 of the slow one.
        (0, {"n_open": 30}, 20),
        (1, {"n_open": 30}, 10),
        (0, {"n_open": 3}, 2),
        (1, {"n_open": 3}, 2),
        (0, {"items_per_epoch": 40}, 20),  # 30 of an epoch's 40
        (1, {"items_per_epoch": 40}, 10),
        (0, {"n_open": 12, "items_per_epoch": 40}, 8),
        (0, {"n_open": 10_000}, 50),
        (1, {"n_open": 10_000}, 25),
    ],
)
def test_each_gets_its_share(replica: int, values: dict[str, Any], expected: int) -> None:
    assert wanted(membership(0.5, 1.0), replica, **values) == expected


def test_one_whose_pace_is_unknown_has_its_share_kept() -> None:
    assert wanted(membership(0.5, None), n_open=10) == 5


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=8),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(1, 100),
)
def test_together_they_hold_no_more_than_their_share_but_for_rounding(
    paces: list[float], n_open: int, items_per_epoch: int, lease_s: float
) -> None:
    m = membership(*paces)
    targets = [
        wanted(m, i, n_open=n_open, items_per_epoch=items_per_epoch, lease_s=lease_s)
        for i in range(len(paces))
    ]
    shared = min(n_open, SHARE_OF_EPOCH * items_per_epoch)
    assert all(target >= FIRST_LEASE for target in targets)
    rounded = [target - 1 for target in targets if target > FIRST_LEASE]
    assert sum(rounded) < shared + 1e-6
    for target, seconds in zip(targets, paces, strict=True):
        assert target <= max(FIRST_LEASE, 1.25 * lease_s / seconds + 1)
