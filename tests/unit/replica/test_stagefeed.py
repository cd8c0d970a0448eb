"""The first stage says what comes next, and the others hear it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from distbelief.data.loader import Batch, BatchRequest
from distbelief.errors import StageLostError
from distbelief.items import ItemPlan
from distbelief.replica import stagefeed as module
from distbelief.replica.feed import Feed, Work
from distbelief.replica.group import Group
from distbelief.replica.stagefeed import FollowingFeed, LeadingFeed
from distbelief.types import LeasedItem

PLAN = ItemPlan(n_examples=11, batch_size=2, n_push=2, n_items=30)
ITEM = LeasedItem(number=3, lease=2**40, epoch=1, begin=0, end=4, rate=0.1 + 0.2)


def batch_of(request: BatchRequest) -> Batch:
    """The labels are the indices; of every batch the last example cannot be read."""
    kept = request.indices[:-1]
    images = np.full((len(kept), 2, 2, 3), 7, dtype=np.uint8)
    return Batch(images, kept * 10, kept, (int(request.indices[-1]),))


def feed_of(submit: Callable[[BatchRequest], Future[Batch]] | None = None) -> Feed:
    def at_once(request: BatchRequest) -> Future[Batch]:
        found: Future[Batch] = Future()
        found.set_result(batch_of(request))
        return found

    return Feed(PLAN, lambda epoch: np.arange(11), submit or at_once, batches_ahead=4)


def kinds(group: Any) -> list[str]:
    return [word["kind"] for word in group.log]


MakeGroups = Callable[[int], list[Any]]


def test_the_others_get_the_same_item_and_the_labels_of_its_batches(
    thread_groups: MakeGroups,
) -> None:
    first, *others = thread_groups(3)
    feed = feed_of()
    feed.extend([ITEM])
    leading = LeadingFeed(feed, first)
    followers = [FollowingFeed(group, 5) for group in others]
    assert leading.ready
    work = leading.next()
    assert work is not None
    assert work.item == ITEM
    batches = [pending.result() for pending in work.batches]
    for following in followers:
        assert following.ready
        heard = following.next()
        assert heard is not None
        assert heard.item == ITEM  # the rate too, to the last bit
        assert len(heard.batches) == len(batches) == 2
        for pending, batch in zip(heard.batches, batches, strict=True):
            found = pending.result()
            assert found.labels.tolist() == batch.labels.tolist()
            assert found.labels.dtype == batch.labels.dtype
            assert found.skipped == batch.skipped
            assert len(found.images) == len(found.indices) == 0
    assert kinds(first) == ["item", "batch", "batch"]


def test_labels_of_other_shapes_and_of_no_rows_are_heard(thread_groups: MakeGroups) -> None:
    labels = [np.zeros((0,), np.int64), np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)]
    left = list(labels)

    def submit(request: BatchRequest) -> Future[Batch]:
        found: Future[Batch] = Future()
        found.set_result(Batch(np.zeros((0,), np.uint8), left.pop(0), request.indices, ()))
        return found

    first, second = thread_groups(2)
    feed = feed_of(submit)
    feed.extend([ITEM])
    work, following = LeadingFeed(feed, first).next(), FollowingFeed(second, 5)
    assert work is not None
    for pending in work.batches:
        pending.result()
    heard = following.next()
    assert heard is not None
    for pending, expected in zip(heard.batches, labels, strict=True):
        found = pending.result().labels
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)


def test_a_batch_is_told_only_when_it_is_taken(thread_groups: MakeGroups) -> None:
    first, _ = thread_groups(2)
    feed = feed_of()
    feed.extend([ITEM])
    work = LeadingFeed(feed, first).next()
    assert work is not None
    assert kinds(first) == ["item"]
    work.batches[0].result()
    assert kinds(first) == ["item", "batch"]


def test_where_there_is_nothing_all_know_before_they_wait(
    thread_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = thread_groups(2)
    feed = feed_of()
    leading, following = LeadingFeed(feed, first), FollowingFeed(second, 5)
    assert not leading.ready
    assert not following.ready
    feed.extend([ITEM])
    work, heard = leading.next(), following.next()
    assert work is not None
    assert heard is not None
    assert work.item == heard.item
    assert kinds(first) == kinds(second) == ["idle", "item"]


def test_while_it_waits_for_an_item_it_says_so(
    thread_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the others do not take it for lost."""
    monkeypatch.setattr(module, "STILL_THERE_S", 0.001)
    first, second = thread_groups(2)
    feed = feed_of()
    leading, following = LeadingFeed(feed, first), FollowingFeed(second, 5)
    assert not leading.ready
    assert not following.ready
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(leading.next)
        for _ in range(3):  # it has said so three times
            word, _ = second.hear()
            assert word["kind"] == "idle"
        feed.extend([ITEM])
        assert coming.result(60).item == ITEM  # type: ignore[union-attr]
    heard = following.next()
    assert heard is not None
    assert heard.item == ITEM


def test_while_it_waits_for_a_batch_it_says_so(
    thread_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STILL_THERE_S", 0.001)
    first, second = thread_groups(2)
    futures: list[Future[Batch]] = []

    def submit(request: BatchRequest) -> Future[Batch]:
        futures.append(Future())
        return futures[-1]

    feed = feed_of(submit)
    feed.extend([ITEM])
    work = LeadingFeed(feed, first).next()
    assert work is not None
    second.hear()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(work.batches[0].result)
        for _ in range(3):
            word, _ = second.hear()
            assert word["kind"] == "idle"
        batch = batch_of(BatchRequest(0, np.arange(4)))
        futures[0].set_result(batch)
        assert coming.result(60) is batch
    pending = module._Heard(second)
    assert pending.result().labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        TimeoutError("no answer"),  # as of a data set that reads from a network
    ],
    ids=repr,
)
def test_a_batch_that_cannot_be_made_raises_what_it_did(
    error: Exception, thread_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(request: BatchRequest) -> Future[Batch]:
        found: Future[Batch] = Future()
        found.set_exception(error)
        return found

    first, _ = thread_groups(2)
    feed = feed_of(submit)
    feed.extend([ITEM])
    work = LeadingFeed(feed, first).next()
    assert work is not None

    def tell(word: Any, arrays: Any = ()) -> None:
        raise AssertionError(f"it went on: {word}")

    monkeypatch.setattr(first, "tell", tell)
    with pytest.raises(type(error)) as caught:
        work.batches[0].result()
    assert caught.value is error


def test_a_batch_that_is_made_at_the_last_moment_is_taken(thread_groups: MakeGroups) -> None:
    """Between the end of a wait for it and the question whether it is there."""
    batch = batch_of(BatchRequest(0, np.arange(4)))

    class Late:
        def done(self) -> bool:
            return True

        def result(self, timeout: float | None = None) -> Batch:
            if timeout is not None:
                raise TimeoutError
            return batch

    first, second = thread_groups(2)
    assert module._Told(Late(), first).result() is batch
    assert module._Heard(second).result().labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("idle", [False, True])
def test_the_end_is_told_to_all(idle: bool, thread_groups: MakeGroups) -> None:
    first, second = thread_groups(2)
    feed = feed_of()
    leading, following = LeadingFeed(feed, first), FollowingFeed(second, 5)
    if idle:
        assert not leading.ready
        assert not following.ready
    feed.end()
    if not idle:
        assert leading.ready
        assert following.ready
    assert leading.next() is None
    assert following.next() is None
    assert kinds(first) == [*(["idle"] if idle else []), "end"]


def test_the_item_before_counts_as_finished(thread_groups: MakeGroups) -> None:
    first, _ = thread_groups(2)
    feed = feed_of()
    feed.extend([ITEM])
    leading = LeadingFeed(feed, first)
    assert leading.ready
    assert leading.next() is not None
    assert feed.held() == ((ITEM.number, ITEM.lease),)
    assert not leading.ready
    feed.end()
    assert leading.next() is None
    assert feed.held() == ()


class Says:
    """A first stage that says what it is told to."""

    stage, n_stages = 1, 2

    def __init__(self, *kinds: str) -> None:
        self._kinds = list(kinds)

    def hear(self) -> Any:
        return {"kind": self._kinds.pop(0)}, []


def test_another_word_than_was_due_is_the_end_of_understanding() -> None:
    group: Group = Says("batch")  # type: ignore[assignment]
    following = FollowingFeed(group, 5)
    assert following.ready
    with pytest.raises(StageLostError) as caught:
        following.next()
    assert (caught.value.replica, caught.value.stage) == (5, 1)
    assert caught.value.detail == "it said 'batch', where an item was due"


def test_work_may_be_asked_for_without_asking_whether_it_is_there(
    thread_groups: MakeGroups,
) -> None:
    first, second = thread_groups(2)
    feed = feed_of()
    feed.extend([ITEM])
    work: Work | None = LeadingFeed(feed, first).next()
    heard = FollowingFeed(second, 5).next()
    assert work is not None
    assert heard is not None
    assert work.item == heard.item
