"""What is done to a run: drawn from a seed, within its bounds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distbelief.chaos.schedule import (
    FIRST_S,
    LONGEST_STOP_S,
    QUIET_S,
    SHORTEST_STOP_S,
    schedule,
)

seeds = st.integers(0, 2**63 - 1)
times = st.floats(1.0, 700.0)


@given(seeds, times, st.floats(1.0, 60.0), st.booleans())
def test_the_same_seed_gives_the_same(
    seed: int, total_s: float, every_s: float, twins: bool
) -> None:
    a, b = (schedule(seed, total_s=total_s, every_s=every_s, twins=twins) for _ in range(2))
    assert a == b


def test_another_seed_gives_another() -> None:
    found = {schedule(seed, total_s=600, every_s=20, twins=True) for seed in range(20)}
    assert len(found) == 20


@given(seeds, times, st.floats(1.0, 60.0), st.booleans())
def test_it_leaves_the_beginning_and_the_end_alone(
    seed: int, total_s: float, every_s: float, twins: bool
) -> None:
    for action in schedule(seed, total_s=total_s, every_s=every_s, twins=twins):
        assert FIRST_S <= action.at_s <= total_s - QUIET_S
        if action.deed == "kill":
            assert action.stopped_s == 0.0
        else:
            assert SHORTEST_STOP_S <= action.stopped_s <= LONGEST_STOP_S
        assert twins or action.kind != "twin"


@given(seeds)
def test_each_kind_has_its_turn(seed: int) -> None:
    actions = schedule(seed, total_s=20 * 25 + QUIET_S, every_s=20, twins=True)
    assert [action.at_s for action in actions] == [20.0 * k for k in range(1, 26)]
    kinds = Counter(action.kind for action in actions)
    assert kinds == dict.fromkeys(["replica", "shard", "twin", "coordinator", "evaluator"], 5)


def test_ten_minutes() -> None:
    actions = schedule(0, total_s=600, every_s=20, twins=True)
    assert len(actions) == 29
    assert {action.deed for action in actions} == {"kill", "stop"}


def test_a_short_run_is_left_alone() -> None:
    assert schedule(0, total_s=20, every_s=20, twins=True) == ()
