"""How often what dies is started again: a table of lives and deaths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbelief.coordinator.restarts import FIRST_S, MOST, SERVED_S, Restarts


def waits(lives: list[float | None]) -> list[float | None]:
    """The wait after each of these lives in seconds; None for one that never served."""
    restarts, now, found = Restarts(), 100.0, []
    for life in lives:
        now += 1.0
        if life is not None:
            restarts.started("it", now)
            now += life
        found.append(restarts.died("it", now))
    return found


@pytest.mark.parametrize(
    ("lives", "expected"),
    [
        ([], []),
        ([None], [0.0]),
        ([5.0], [0.0]),
        ([5.0, None, 5.0], [0.0, 0.5, 1.0]),
        (7 * [5.0], [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, None]),
        (8 * [None], [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, None, None]),
        # What has served begins a new row.
        (4 * [SERVED_S], 4 * [0.0]),
        ([5.0, 5.0, SERVED_S, 5.0], [0.0, 0.5, 0.0, 0.5]),
        ([5.0, 5.0, 0.999 * SERVED_S, 5.0], [0.0, 0.5, 1.0, 2.0]),
        ([*6 * [5.0], SERVED_S, *6 * [5.0]], [0, 0.5, 1, 2, 4, 8, 0, 0.5, 1, 2, 4, 8, None]),
        # One that never served after one that did is not taken for it.
        ([SERVED_S, None, None], [0.0, 0.5, 1.0]),
    ],
)
def test_waits(lives: list[float | None], expected: list[float | None]) -> None:
    assert waits(lives) == expected


def test_things_are_counted_apart() -> None:
    restarts = Restarts()
    assert [restarts.died("a", 0.0), restarts.died("b", 0.0)] == [0.0, 0.0]
    restarts.started("a", 1.0)
    assert restarts.died("b", 1.0 + SERVED_S) == 0.5, "it was not this one that served"
    assert restarts.died("a", 1.0 + SERVED_S) == 0.0


@given(st.lists(st.none() | st.floats(0.0, 2 * SERVED_S, allow_nan=False), max_size=30))
def test_no_row_is_longer_than_it_may_be_and_no_wait(lives: list[float | None]) -> None:
    in_a_row = 0
    for life, wait in zip(lives, waits(lives), strict=True):
        # The clock's own rounding decides at the very limit.
        if life is not None and abs(life - SERVED_S) < 1e-6:
            return
        in_a_row = 1 if life is not None and life >= SERVED_S else in_a_row + 1
        assert (wait is None) == (in_a_row > MOST)
        assert wait is None or 0.0 <= wait <= FIRST_S * 2.0 ** (MOST - 2)
