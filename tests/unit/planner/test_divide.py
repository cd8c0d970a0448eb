"""Where a network is divided."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distbelief.errors import ConfigError
from distbelief.planner import divide as module
from distbelief.planner.costs import Costs, Link, spans
from distbelief.planner.divide import divide, even, refuse_too_large
from distbelief.planner.predict import predict

MakeCosts = Callable[..., Costs]
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SHARED
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    slowness=st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_dynamic_programming_finds_what_trying_all_finds(
    weights: list[int], slowness: list[int]
) -> None:
    def weight(index: int, begin: int, end: int) -> float:
        return sum(weights[begin:end]) * slowness[index]

    def heaviest(cuts: tuple[int, ...]) -> float:
        return max(weight(i, *span) for i, span in enumerate(spans(cuts, len(weights))))

    every = itertools.combinations(range(1, len(weights)), len(slowness) - 1)
    best = min(map(heaviest, every), default=math.inf)
    found = even(len(weights), len(slowness), weight)
    if found is None:
        assert best == math.inf
    else:
        assert len(found) == len(slowness) - 1
        assert heaviest(found) == best


def test_what_cannot_be_is_not_chosen() -> None:
    def weight(index: int, begin: int, end: int) -> float:
        return end - begin if (begin, end) != (0, 2) else math.inf

    assert even(4, 2, weight) in {(1,), (3,)}
    assert even(2, 1, weight) is None
    assert even(2, 3, weight) is None


def test_even_blocks_are_divided_evenly(make_costs: MakeCosts) -> None:
    assert divide(make_costs([1.0] * 8)) == (4,)
    assert divide(make_costs([1.0] * 9, [1.0] * 3)) == (3, 6)


def test_a_slower_device_gets_less(make_costs: MakeCosts) -> None:
    assert divide(make_costs([1.0] * 8, [3.0, 1.0])) == (2,)
    assert divide(make_costs([1.0] * 8, [1.0, 3.0])) == (6,)


def test_what_travels_moves_the_cut(make_costs: MakeCosts) -> None:
    handed_on = [9, 9, 9, 9, 1, 9, 9, 9]
    costs = make_costs([1.0] * 8, handed_on=handed_on, link=Link(bytes_per_s=1.0, latency_s=0.0))
    assert divide(costs) == (5,)


@SHARED
@given(
    seconds=st.lists(st.integers(1, 9), min_size=4, max_size=8),
    kept=st.lists(st.integers(0, 50), min_size=8, max_size=8),
    n_stages=st.integers(2, 4),
)
def test_of_few_divisions_the_best_is_taken(
    seconds: list[int], kept: list[int], n_stages: int, make_costs: MakeCosts
) -> None:
    costs = make_costs(seconds, [1.0] * n_stages, kept=kept[: len(seconds)])
    every = list(itertools.combinations(range(1, len(seconds)), n_stages - 1))
    steps = [predict(costs.stages(cuts), costs.flow).step_s for cuts in every]
    largest = [max(costs.memories(cuts)) for cuts in every]
    by_time, by_memory = divide(costs), divide(costs, "memory")
    assert predict(costs.stages(by_time), costs.flow).step_s == min(steps)
    assert max(costs.memories(by_memory)) == min(largest)


def test_of_many_divisions_one_near_the_even_one_is_taken(
    make_costs: MakeCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = make_costs([1, 5, 2, 2, 7, 1, 1, 4, 3, 3], [1.0] * 4, micro_batches=16)
    best = predict(costs.stages(divide(costs)), costs.flow).step_s
    monkeypatch.setattr(module, "FEW", 0)
    assert predict(costs.stages(divide(costs)), costs.flow).step_s == best
    even_one = make_costs([1.0] * 60, [1.0] * 6, micro_batches=24)
    assert divide(even_one) == (10, 20, 30, 40, 50)


def test_memory_may_move_the_cut_away_from_the_fastest(make_costs: MakeCosts) -> None:
    # In the first half of eight micro-batches stage 0 keeps two at once: 4 x 100 bytes of each.
    free = make_costs([1.0] * 8, kept=100, parameters=1)
    assert divide(free) == (4,)
    needed = max(free.memories((3,)))
    assert max(free.memories((4,))) > needed
    assert divide(make_costs([1.0] * 8, kept=100, parameters=1, memory=needed)) == (3,)
    assert divide(free, "memory") == (3,)


@pytest.mark.parametrize("limit", ["stages", "device_memory_gb"])
def test_what_fits_nowhere_is_refused_with_figures(make_costs: MakeCosts, limit: str) -> None:
    costs = make_costs([1.0] * 4, parameters=10**6, memory=30 * 10**6)
    with pytest.raises(ConfigError, match=r"needs 32 MB, and d. has 30 MB; take more") as caught:
        divide(costs, limit=limit)
    assert caught.value.field == limit
    assert "of 2 (b" in str(caught.value)
    assert divide(make_costs([1.0] * 4, parameters=10**6, memory=32 * 10**6)) == (2,)


def test_a_given_division_is_held_against_the_devices(make_costs: MakeCosts) -> None:
    costs = make_costs([1.0] * 4, parameters=10**6, memory=40 * 10**6)
    refuse_too_large(costs, (2,))
    with pytest.raises(ConfigError, match=r"stage 1 of 2 \(b1 to b3\) needs 48 MB, and d1 has 40"):
        refuse_too_large(costs, (1,))
    refuse_too_large(make_costs([1.0] * 4, parameters=10**9), (1,))


def test_every_stage_trains_something(make_costs: MakeCosts) -> None:
    costs = make_costs([1.0] * 6, parameters=[5, 0, 0, 0, 0, 5])
    assert divide(costs) == (3,)
    assert divide(make_costs([1.0] * 6, parameters=[5, 5, 0, 0, 0, 0])) == (1,)
    with pytest.raises(ConfigError, match="3 of a network in which 2 blocks have something"):
        divide(make_costs([1.0] * 6, [1.0] * 3, parameters=[5, 5, 0, 0, 0, 0]))
