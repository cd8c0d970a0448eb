"""The ledger: which items are free, leased, done or set aside.

The shards' applied sets are the truth; the ledger follows them. An item is done when every shard
has it, applied or set aside. To lease an item that is done after all is harmless, since a shard
answers a repeat with "already applied"; to forget one is not, so whatever is not done and not held
by anybody is free.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distbelief.items import ItemPlan
from distbelief.server.account import accounted_by
from distbelief.server.applied import ItemSet, intersection
from distbelief.types import ShardState


@dataclass(slots=True)
class Lease:
    """An item in the hands of a replica; ``reported_at`` is when it said that it had pushed it."""

    number: int
    replica: int
    reported_at: int | None = None


class Ledger:
    """The account of a run's items. Not thread-safe; all times are counts that the caller keeps."""

    EPOCHS_OPEN = 2
    """New leases come from so many epochs, from the oldest unfinished one on."""

    def __init__(self, plan: ItemPlan, n_shards: int) -> None:
        self.plan = plan
        self.done = ItemSet()
        self._applied: list[ItemSet] = [ItemSet() for _ in range(n_shards)]
        self._set_aside: dict[int, str] = {}
        self._leases: dict[int, Lease] = {}
        self._returned: list[int] = []
        self._next_fresh = 0
        self._next_lease = 1

    @property
    def finished(self) -> bool:
        """Whether every item of the run is done."""
        return self.done.contains_all(range(self.plan.n_items))

    @property
    def n_open(self) -> int:
        """Items that are neither done nor reported as pushed."""
        reported = sum(lease.reported_at is not None for lease in self._leases.values())
        return self.plan.n_items - len(self.done) - reported

    @property
    def set_aside(self) -> dict[int, str]:
        """Items that will not be applied, with the reason."""
        return dict(self._set_aside)

    def examples_done(self) -> int:
        """Examples of the items that every shard has applied."""
        examples = 0
        for begin, end in self.done.intervals:
            examples += self.plan.examples_before(end) - self.plan.examples_before(begin)
        return examples - self.examples_set_aside()

    def examples_set_aside(self) -> int:
        """Examples of the items that were set aside everywhere."""
        return sum(self.plan.item(i).n_examples for i in self._set_aside if i in self.done)

    def epochs_finished(self) -> int:
        """Whole epochs of the run, from the first on, of which every item is done."""
        return min(self.done.below, self.plan.n_items) // self.plan.items_per_epoch

    def held_by(self, replica: int) -> list[int]:
        """Items that a replica holds and has not reported."""
        return sorted(
            item
            for item, lease in self._leases.items()
            if lease.replica == replica and lease.reported_at is None
        )

    def lease(self, replica: int, n_items: int) -> list[tuple[int, int]]:
        """Leases up to ``n_items`` to a replica: pairs of item and lease number, in item order."""
        granted: list[tuple[int, int]] = []
        while len(granted) < n_items and (item := self._take()) is not None:
            self._leases[item] = Lease(self._next_lease, replica)
            granted.append((item, self._next_lease))
            self._next_lease += 1
        return sorted(granted)

    def report(self, replica: int, item: int, now: int) -> None:
        """Notes that a replica has pushed an item to every shard; the shards' sets will confirm."""
        lease = self._leases.get(item)
        if lease is not None and lease.replica == replica:
            lease.reported_at = now

    def give_back(self, replica: int, items: Iterable[int]) -> list[int]:
        """Frees items that a replica holds and will not do; returns those that it did hold."""
        freed = []
        for item in items:
            lease = self._leases.get(item)
            if lease is not None and lease.replica == replica:
                del self._leases[item]
                heapq.heappush(self._returned, item)
                freed.append(item)
        return freed

    def lose(self, replica: int) -> list[int]:
        """Frees all that a dead replica held, reported or not; returns those that are not done."""
        held = [i for i, lease in self._leases.items() if lease.replica == replica]
        return [item for item in self.give_back(replica, held) if item not in self.done]

    def observe(self, states: Sequence[ShardState], asked_at: int) -> None:
        """Takes in the shards' accounts of themselves.

        Args:
            states: One of each shard, in order.
            asked_at: The count of time before the shards were asked: an item that was reported
                before then and that a shard lacks is not on its way any more, and becomes free.
        """
        accounted = []
        for state in states:
            self._applied[state.shard] = ItemSet(state.applied)
            self._set_aside.update(state.set_aside)
            accounted.append(accounted_by(state))
        self.done = intersection(accounted)
        self._next_fresh = max(self._next_fresh, min(self.done.below, self.plan.n_items))
        # Set aside on some shards, applied on others: it counts as applied where it was.
        for item in [i for i in self._set_aside if all(i in s for s in self._applied)]:
            del self._set_aside[item]
        for item in list(self._leases):
            lease = self._leases[item]
            if item in self.done:
                del self._leases[item]
            elif lease.reported_at is not None and lease.reported_at < asked_at:
                self.give_back(lease.replica, [item])
        self._free_what_nobody_holds()

    def _take(self) -> int | None:
        while self._returned:
            item = heapq.heappop(self._returned)
            if item not in self.done and item not in self._leases:
                return item
        while self._next_fresh < min(self._open_until(), self.plan.n_items):
            self._next_fresh += 1
            if self._next_fresh - 1 not in self.done:
                return self._next_fresh - 1
        return None

    def _free_what_nobody_holds(self) -> None:
        """A shard that came back with less than it had may lack items that were done."""
        waiting = set(self._returned)
        for begin, end in self.done.gaps(self._next_fresh):
            for item in range(begin, end):
                if item not in self._leases and item not in waiting:
                    heapq.heappush(self._returned, item)

    def _open_until(self) -> int:
        oldest = self.done.below // self.plan.items_per_epoch
        return (oldest + self.EPOCHS_OPEN) * self.plan.items_per_epoch
