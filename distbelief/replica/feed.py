"""From leases to batches: what a replica computes next, loaded ahead of the compute."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distbelief.data.loader import Batch, BatchRequest
from distbelief.items import Item, ItemPlan
from distbelief.types import LeasedItem

Submit = Callable[[BatchRequest], "Future[Batch]"]
Order = Callable[[int], NDArray[np.int64]]


class Pending(Protocol):
    """A batch that is being made."""

    def done(self) -> bool:
        """Whether :meth:`result` would return at once."""
        ...

    def result(self, timeout: float | None = None) -> Batch:
        """Waits for it, for so many seconds at most; raises what went wrong, or TimeoutError."""
        ...


@dataclass(slots=True)
class Work:
    """A leased item with its batches, one a step."""

    item: LeasedItem
    batches: list[Pending] = field(default_factory=list)


class Feed:
    """Items in the order of their leases, the first few of them being loaded. Thread-safe."""

    def __init__(self, plan: ItemPlan, order: Order, submit: Submit, *, batches_ahead: int) -> None:
        """Load nothing yet.

        Args:
            plan: How the examples are divided into items.
            order: Gives an epoch's order, ``(n_examples,) int64``; called under the feed's lock.
            submit: Asks for a batch, and returns at once.
            batches_ahead: Batches that are loaded ahead.
        """
        self._plan = plan
        self._order_of = order
        self._submit = submit
        self._batches_ahead = batches_ahead
        self._changed = threading.Condition()
        self._waiting: deque[LeasedItem] = deque()
        self._loading: deque[Work] = deque()
        self._current: Work | None = None
        self._ended = False
        self._orders: dict[int, NDArray[np.int64]] = {}

    def extend(self, items: Iterable[LeasedItem]) -> None:
        """Adds leased items."""
        with self._changed:
            self._waiting.extend(items)
            self._load_ahead()
            self._changed.notify_all()

    def end(self) -> None:
        """No more items will come, and none of those that wait is begun any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def held(self) -> tuple[tuple[int, int], ...]:
        """Items that have not been finished, each with its lease."""
        with self._changed:
            current = [self._current.item] if self._current else []
            items = [*current, *(work.item for work in self._loading), *self._waiting]
            return tuple((item.number, item.lease) for item in items)

    @property
    def ready(self) -> bool:
        """Whether :meth:`next` would return at once."""
        with self._changed:
            return self._ended or bool(self._loading)

    def wait(self, timeout_s: float) -> bool:
        """Waits until :meth:`next` would return at once; false if that takes longer."""
        with self._changed:
            self._current = None
            return self._changed.wait_for(lambda: self._ended or bool(self._loading), timeout_s)

    def next(self) -> Work | None:
        """Waits for the next item; None at the end. The one before counts as finished."""
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._ended or self._loading)
            if self._ended:
                return None
            self._current = self._loading.popleft()
            self._load_ahead()
            return self._current

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch]

    def _load_ahead(self) -> None:
        ahead = sum(len(work.batches) for work in self._loading)
        while self._waiting and (ahead < self._batches_ahead or not self._loading):
            work = Work(self._waiting.popleft())
            leased = work.item
            order = self._order(leased.epoch)
            item = Item(leased.number, leased.epoch, leased.begin, leased.end)
            for begin, end in self._plan.steps(item):
                work.batches.append(self._submit(BatchRequest(leased.epoch, order[begin:end])))
            ahead += len(work.batches)
            self._loading.append(work)
