"""From leases to batches."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from distbelief.data.loader import Batch, BatchRequest
from distbelief.data.permutation import epoch_permutation
from distbelief.items import ItemPlan
from distbelief.replica.feed import Feed, Work
from distbelief.types import LeasedItem

SEED = 5
# Epochs of 11 examples: items of 4, 4 and 3 in steps of 2.
PLAN = ItemPlan(n_examples=11, batch_size=2, n_push=2, n_items=30)


class Loader:
    """Keeps what was asked for."""

    def __init__(self) -> None:
        self.requests: list[BatchRequest] = []

    def submit(self, request: BatchRequest) -> Future[Batch]:
        self.requests.append(request)
        return Future()


@pytest.fixture
def loader() -> Loader:
    return Loader()


def order_of(epoch: int) -> NDArray[np.int64]:
    return epoch_permutation(SEED, epoch, 11)


def feed_of(loader: Loader, batches_ahead: int = 4) -> Feed:
    return Feed(PLAN, order_of, loader.submit, batches_ahead=batches_ahead)


def leased(*numbers: int) -> list[LeasedItem]:
    items = [PLAN.item(number) for number in numbers]
    return [LeasedItem(i.number, 100 + i.number, i.epoch, i.begin, i.end, 0.5) for i in items]


def taken(work: Work | None) -> int:
    assert work is not None
    return work.item.number


def test_an_items_batches_are_its_steps_of_the_epochs_permutation(loader: Loader) -> None:
    feed = feed_of(loader, batches_ahead=100)
    feed.extend(leased(5, 0))
    work = feed.next()
    assert work is not None
    assert work.item == leased(5)[0]
    assert len(work.batches) == 2
    order = epoch_permutation(SEED, 1, 11)
    assert [r.epoch for r in loader.requests] == [1, 1, 0, 0]
    assert [r.indices.tolist() for r in loader.requests[:2]] == [
        order[8:10].tolist(),
        order[10:11].tolist(),  # the epoch's last step is shorter
    ]


def test_an_epochs_items_cover_every_example_once(loader: Loader) -> None:
    feed = feed_of(loader, batches_ahead=100)
    feed.extend(leased(5, 3, 4))
    indices = np.concatenate([request.indices for request in loader.requests])
    assert sorted(indices.tolist()) == list(range(11))


def test_an_item_covers_the_same_whoever_has_it_and_in_whatever_order(loader: Loader) -> None:
    other = Loader()
    feed_of(loader).extend(leased(7))
    feed_of(other, batches_ahead=100).extend(leased(2, 12, 7))
    last = [request.indices.tolist() for request in other.requests[-2:]]
    assert [request.indices.tolist() for request in loader.requests] == last


def test_items_come_in_the_order_of_their_leases(loader: Loader) -> None:
    feed = feed_of(loader)
    feed.extend(leased(4, 2))
    feed.extend(leased(9))
    assert [taken(feed.next()) for _ in range(3)] == [4, 2, 9]


def test_the_batches_are_those_that_were_submitted(loader: Loader) -> None:
    futures: list[Future[Batch]] = []

    def submit(request: BatchRequest) -> Future[Batch]:
        futures.append(Future())
        return futures[-1]

    feed = Feed(PLAN, order_of, submit, batches_ahead=4)
    feed.extend(leased(0, 1))
    for expected in (futures[:2], futures[2:4]):
        work = feed.next()
        assert work is not None
        assert work.batches == expected


@pytest.mark.parametrize(
    ("batches_ahead", "submitted"),
    [
        # Items of two batches each: at the start, then after each of the items is taken.
        (4, [4, 6, 8, 10, 10, 10]),
        (3, [4, 6, 8, 10, 10, 10]),
        (2, [2, 4, 6, 8, 10, 10]),
        (1, [2, 4, 6, 8, 10, 10]),  # the next item is loaded, however many batches it has
        (100, [10, 10, 10, 10, 10, 10]),
    ],
)
def test_no_more_is_loaded_than_is_asked_for_and_one_item_at_least(
    batches_ahead: int, submitted: list[int], loader: Loader
) -> None:
    feed = feed_of(loader, batches_ahead)
    feed.extend(leased(0, 1, 3, 4, 6))
    found = [len(loader.requests)]
    for _ in range(5):
        feed.next()
        found.append(len(loader.requests))
    assert found == submitted


def test_what_is_held_is_all_that_is_not_finished(loader: Loader) -> None:
    feed = feed_of(loader, batches_ahead=1)
    assert feed.held() == ()
    feed.extend(leased(0, 1, 2))
    assert feed.held() == ((0, 100), (1, 101), (2, 102))
    feed.next()
    assert feed.held() == ((0, 100), (1, 101), (2, 102))  # being computed
    feed.next()
    assert feed.held() == ((1, 101), (2, 102))
    feed.next()
    feed.end()
    assert feed.held() == ((2, 102),)
    assert feed.next() is None
    assert feed.held() == ()


def test_at_the_end_nothing_is_begun_and_what_waits_is_still_held(loader: Loader) -> None:
    feed = feed_of(loader)
    feed.extend(leased(0, 1))
    feed.end()
    assert feed.next() is None
    assert feed.next() is None
    assert feed.held() == ((0, 100), (1, 101))


def test_ready_tells_whether_next_would_return(loader: Loader) -> None:
    feed = feed_of(loader)
    assert not feed.ready
    feed.extend(leased(0))
    assert feed.ready
    feed.next()
    assert not feed.ready
    feed.end()
    assert feed.ready


@pytest.mark.parametrize(
    ("act", "expected"),
    [(lambda feed: feed.extend(leased(3)), 3), (lambda feed: feed.end(), None)],
    ids=["extend", "end"],
)
def test_next_waits_for_an_item_or_the_end(
    act: Callable[[Feed], None], expected: int | None, loader: Loader
) -> None:
    feed = feed_of(loader)
    waits = feed._changed.wait_for
    waiting: Future[None] = Future()

    def wait_for(predicate: Callable[[], bool]) -> bool:
        waiting.set_result(None)
        return waits(predicate)

    feed._changed.wait_for = wait_for  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(feed.next)
        waiting.result(60)
        act(feed)  # needs the lock, which is free only once it waits
        work = coming.result(60)
    assert (work and work.item.number) == expected


def test_orders_of_old_epochs_are_dropped(loader: Loader) -> None:
    feed = feed_of(loader, batches_ahead=1000)
    feed.extend(leased(*range(0, 30, 3)))  # ten epochs
    assert sorted(feed._orders) == [8, 9]
    feed.extend(leased(24))  # of the last epoch but one, leased again
    order = epoch_permutation(SEED, 8, 11)
    assert loader.requests[-2].indices.tolist() == order[0:2].tolist()


# Waiting for so long


def test_waiting_ends_without_an_item(loader: Loader) -> None:
    feed = feed_of(loader)
    assert not feed.wait(0.0)
    feed.extend(leased(3))
    assert feed.wait(0.0)
    assert feed.wait(0.0)  # nothing has been taken
    assert taken(feed.next()) == 3
    assert not feed.wait(0.0)
    feed.end()
    assert feed.wait(0.0)
    assert feed.next() is None


def test_who_waits_has_finished_the_item_before(loader: Loader) -> None:
    feed = feed_of(loader)
    feed.extend(leased(3))
    feed.next()
    assert feed.held() == ((3, 103),)
    assert not feed.wait(0.0)
    assert feed.held() == ()


@pytest.mark.parametrize(
    "act", [lambda feed: feed.extend(leased(3)), lambda feed: feed.end()], ids=["extend", "end"]
)
def test_waiting_ends_with_an_item_or_the_end(act: Callable[[Feed], None], loader: Loader) -> None:
    feed = feed_of(loader)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(feed.wait, 60.0)
        act(feed)
        assert coming.result(60)
