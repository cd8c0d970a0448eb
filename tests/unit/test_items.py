"""The plan: every example of every epoch is in exactly one item."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.items import Item, ItemPlan


def plan(
    n_examples: int = 100, batch_size: int = 10, n_push: int = 1, n_items: int = 20
) -> ItemPlan:
    return ItemPlan(n_examples=n_examples, batch_size=batch_size, n_push=n_push, n_items=n_items)


plans = st.builds(
    plan,
    n_examples=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    n_push=st.integers(1, 5),
    n_items=st.integers(1, 60),
)


@pytest.mark.parametrize(
    ("n_examples", "batch_size", "n_push", "per_item", "per_epoch"),
    [
        (100, 10, 1, 10, 10),
        (101, 10, 1, 10, 11),
        (99, 10, 1, 10, 10),
        (100, 10, 3, 30, 4),
        (1, 32, 4, 128, 1),
        (128, 32, 4, 128, 1),
        (129, 32, 4, 128, 2),
    ],
)
def test_size_of_items_and_epochs(
    n_examples: int, batch_size: int, n_push: int, per_item: int, per_epoch: int
) -> None:
    p = plan(n_examples, batch_size, n_push)
    assert (p.examples_per_item, p.items_per_epoch) == (per_item, per_epoch)


def test_items_by_number() -> None:
    p = plan(n_examples=25, batch_size=10, n_items=6)
    assert [p.item(i) for i in range(6)] == [
        Item(0, 0, 0, 10),
        Item(1, 0, 10, 20),
        Item(2, 0, 20, 25),
        Item(3, 1, 0, 10),
        Item(4, 1, 10, 20),
        Item(5, 1, 20, 25),
    ]
    assert [p.item(i).n_examples for i in range(3)] == [10, 10, 5]


def test_an_item_beyond_the_run_still_has_its_examples() -> None:
    assert plan(n_examples=25, batch_size=10, n_items=1).item(5) == Item(5, 1, 20, 25)


def test_steps_cut_an_item_into_batches() -> None:
    p = plan(n_examples=65, batch_size=10, n_push=3, n_items=3)
    assert p.steps(p.item(0)) == [(0, 10), (10, 20), (20, 30)]
    assert p.steps(p.item(2)) == [(60, 65)]


@pytest.mark.parametrize(
    ("n_examples", "epochs", "max_examples", "n_items", "total"),
    [
        (100, 1.0, None, 10, 100),
        (100, 3.0, None, 30, 300),
        (100, 0.5, None, 5, 50),
        (100, 0.51, None, 6, 60),  # never cut short: the item that reaches the limit is whole
        (95, 2.0, None, 20, 190),
        (95, 1.5, None, 15, 145),
        (95, 2.0, 96, 11, 105),
        (95, 2.0, 95, 10, 95),
        (95, 2.0, 1, 1, 10),
        (95, 2.0, 10**9, 20, 190),
    ],
)
def test_of_run(
    n_examples: int, epochs: float, max_examples: int | None, n_items: int, total: int
) -> None:
    p = ItemPlan.of_run(
        n_examples=n_examples, batch_size=10, n_push=1, epochs=epochs, max_examples=max_examples
    )
    assert (p.n_items, p.total_examples) == (n_items, total)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 5),
    st.floats(0.01, 4),
    st.none() | st.integers(1, 1000),
)
def test_of_run_takes_the_fewest_items_that_reach_the_target(
    n_examples: int, batch_size: int, n_push: int, epochs: float, max_examples: int | None
) -> None:
    p = ItemPlan.of_run(
        n_examples=n_examples,
        batch_size=batch_size,
        n_push=n_push,
        epochs=epochs,
        max_examples=max_examples,
    )
    target = round(epochs * n_examples)
    if max_examples is not None:
        target = min(target, max_examples)
    assert p.examples_before(p.n_items) >= target
    assert p.n_items == 0 or p.examples_before(p.n_items - 1) < target


@settings(deadline=None, max_examples=60)
@given(plans)
def test_each_epoch_is_covered_once(p: ItemPlan) -> None:
    for epoch in range(2):
        first = epoch * p.items_per_epoch
        items = [p.item(first + i) for i in range(p.items_per_epoch)]
        assert [i for item in items for i in range(item.begin, item.end)] == list(
            range(p.n_examples)
        )
        assert {item.epoch for item in items} == {epoch}


@settings(deadline=None, max_examples=60)
@given(plans)
def test_position_is_the_sum_of_the_items_before(p: ItemPlan) -> None:
    position = 0
    for number in range(p.n_items):
        assert p.examples_before(number) == position
        position += p.item(number).n_examples
    assert p.total_examples == position


@settings(deadline=None, max_examples=60)
@given(plans)
def test_epochs_divide_the_runs_items(p: ItemPlan) -> None:
    numbers = [i for epoch in range(p.n_epochs) for i in p.items_of_epoch(epoch)]
    assert numbers == list(range(p.n_items))
    assert len(p.items_of_epoch(p.n_epochs)) == 0
    assert all(p.item(i).epoch == e for e in range(p.n_epochs) for i in p.items_of_epoch(e))


@settings(deadline=None, max_examples=60)
@given(plans)
def test_steps_tile_their_item(p: ItemPlan) -> None:
    for number in range(p.n_items):
        item = p.item(number)
        steps = p.steps(item)
        assert len(steps) <= p.n_push
        assert [i for begin, end in steps for i in range(begin, end)] == list(
            range(item.begin, item.end)
        )
        assert all(end - begin == p.batch_size for begin, end in steps[:-1])
