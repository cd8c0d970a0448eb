"""The item set against a plain set."""

import functools
import itertools
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.server.applied import ItemSet, intersection, union

items = st.lists(st.integers(0, 40), max_size=60)
sets = st.sets(st.integers(0, 25))


def of(plain: set[int]) -> ItemSet:
    found = ItemSet()
    for item in plain:
        found.add(item)
    return found


def is_canonical(found: ItemSet) -> bool:
    flat = [bound for interval in found.intervals for bound in interval]
    return all(a < b for a, b in itertools.pairwise(flat))


def test_examples() -> None:
    found = ItemSet()
    assert not found
    assert (found.intervals, found.below, len(found)) == ((), 0, 0)
    assert found.add(3)
    assert found.add(5)
    assert found.intervals == ((3, 4), (5, 6))
    assert found.add(4)  # joins both
    assert found.intervals == ((3, 6),)
    assert not found.add(4)
    assert found.add(6)
    assert found.add(2)
    assert found.intervals == ((2, 7),)
    assert found.below == 0
    assert found.add(0)
    assert (found.below, found.intervals) == (1, ((0, 1), (2, 7)))
    assert found.add(1)
    assert (found.below, len(found)) == (7, 7)


@settings(deadline=None, max_examples=200)
@given(items)
def test_equals_a_plain_set(added: list[int]) -> None:
    found, plain = ItemSet(), set[int]()
    for item in added:
        assert found.add(item) == (item not in plain)
        plain.add(item)
        assert is_canonical(found)
    assert list(found) == sorted(plain)
    assert len(found) == len(plain)
    assert [item in found for item in range(-1, 42)] == [item in plain for item in range(-1, 42)]
    assert found.below == next(i for i in range(42) if i not in plain)


@settings(deadline=None, max_examples=100)
@given(sets, st.integers(0, 26), st.integers(0, 26))
def test_contains_all(plain: set[int], begin: int, end: int) -> None:
    assert of(plain).contains_all(range(begin, end)) == plain.issuperset(range(begin, end))


@pytest.mark.parametrize(
    ("plain", "end", "expected"),
    [
        (set(), 0, ()),
        (set(), 3, ((0, 3),)),
        ({0, 1, 2}, 3, ()),
        ({0, 1, 2}, 2, ()),
        ({0, 3, 4, 7}, 6, ((1, 3), (5, 6))),
        ({0, 3, 4, 7}, 8, ((1, 3), (5, 7))),
        ({0, 3, 4, 7}, 9, ((1, 3), (5, 7), (8, 9))),
        ({5}, 3, ((0, 3),)),
    ],
)
def test_gaps(plain: set[int], end: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert of(plain).gaps(end) == expected


@settings(deadline=None, max_examples=100)
@given(sets, st.integers(0, 30))
def test_gaps_are_what_is_missing(plain: set[int], end: int) -> None:
    gaps = ItemSet(of(plain).gaps(end))
    assert set(gaps) == set(range(end)) - plain
    assert is_canonical(gaps)


@settings(deadline=None, max_examples=100)
@given(sets, sets)
def test_equality_and_the_way_back_from_plain_values(left: set[int], right: set[int]) -> None:
    assert (of(left) == of(right)) == (left == right)
    back = ItemSet(of(left).intervals)
    assert back == of(left)
    back.add(30)
    assert of(left) != back


@settings(deadline=None, max_examples=150)
@given(st.lists(sets, max_size=4))
def test_union(plain: list[set[int]]) -> None:
    found = union(of(s) for s in plain)
    assert set(found) == functools.reduce(operator.or_, plain, set())
    assert is_canonical(found)


@settings(deadline=None, max_examples=150)
@given(st.lists(sets, min_size=1, max_size=4))
def test_intersection(plain: list[set[int]]) -> None:
    found = intersection(of(s) for s in plain)
    assert set(found) == functools.reduce(operator.and_, plain)
    assert is_canonical(found)


def test_the_intersection_of_nothing_is_undefined() -> None:
    with pytest.raises(ValueError, match="unpack"):
        intersection([])


def test_results_share_nothing_with_their_sources() -> None:
    source = of({1, 2})
    for found in (union([source]), intersection([source])):
        found.add(3)
        assert set(source) == {1, 2}


def test_a_long_run_stays_small() -> None:
    found = ItemSet()
    for begin in range(0, 10_000, 8):
        for item in reversed(range(begin, begin + 8)):  # eight replicas, out of order
            found.add(item)
    assert found.intervals == ((0, 10_000),)
