"""The ledger: which items are free, leased, done or set aside.

The shards' applied sets are the truth; the ledger follows them. An item is done when every shard
has it, applied or set aside. To lease an item that is done after all is harmless, since a shard
answers a repeat with "already applied"; to forget one is not, so whatever is not done, not to be
set aside and not held by anybody is free.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence

from distbelief.coordinator.accounts import Forgotten, ShardAccounts
from distbelief.coordinator.barred import Barred
from distbelief.coordinator.leases import Lease, Leases
from distbelief.coordinator.suspects import REASON, Suspects
from distbelief.items import ItemPlan
from distbelief.server.applied import ItemSet
from distbelief.types import ShardState


class Ledger:
    """The account of a run's items. Not thread-safe.

    Times are counts that the caller keeps, except where they are said to be seconds.

    Args:
        plan: The items of the run.
        n_shards: How many shards must have each.
        first_lease: Number of the first lease; above those of any coordinator before.
    """

    EPOCHS_OPEN = 2
    """New leases come from so many epochs, from the oldest unfinished one on."""

    STRAGGLING = 2.0
    """An item that has been held for longer than another replica takes for so many straggles."""

    def __init__(self, plan: ItemPlan, n_shards: int, first_lease: int = 1) -> None:
        self.plan = plan
        self._accounts = ShardAccounts(n_shards)
        self._leases = Leases(first_lease)
        self._suspects = Suspects()
        self._draining: int | None = None
        self._barred = Barred()
        # Whatever is free is at or above the one, or in the other, among others that are not free.
        self._next_fresh = 0
        self._returned: list[int] = []

    @property
    def done(self) -> ItemSet:
        """The items that every shard has, applied or set aside."""
        return self._accounts.done

    @property
    def n_owed(self) -> int:
        """Items that shards have forgotten, and that are not done again yet."""
        return len(self._accounts.owed)

    @property
    def finished(self) -> bool:
        """Whether every item of the run is done."""
        return self.done.contains_all(range(self.plan.n_items))

    @property
    def n_open(self) -> int:
        """Items that are neither done nor reported as pushed."""
        return self.plan.n_items - len(self.done) - self._leases.n_reported

    @property
    def set_aside(self) -> dict[int, str]:
        """Items that some shard has set aside and not every shard has applied, with the reason."""
        return self._barred.on_shards

    def examples_done(self) -> int:
        """Examples of the items that every shard has applied."""
        examples = 0
        for begin, end in self.done.intervals:
            examples += self.plan.examples_before(end) - self.plan.examples_before(begin)
        return examples - self.examples_set_aside()

    def examples_set_aside(self) -> int:
        """Examples of the items that were set aside everywhere."""
        return sum(self.plan.item(i).n_examples for i in self.set_aside if i in self.done)

    def epochs_finished(self) -> int:
        """Whole epochs of the run, from the first on, of which every item is done."""
        return min(self.done.below, self.plan.n_items) // self.plan.items_per_epoch

    def held_by(self, replica: int) -> list[int]:
        """Items that a replica holds and has not reported."""
        return sorted(lease.item for lease in self._leases.held_by(replica))

    def lease(
        self,
        replica: int,
        n_items: int,
        at: float = 0.0,
        *,
        busy: bool = False,
        pace_s: float | None = None,
    ) -> list[tuple[int, int]]:
        """Leases up to ``n_items`` to a replica: pairs of item and lease number, in item order.

        An item that may have killed replicas goes to one that holds nothing, and alone; if all
        hold something, one of them gets nothing more until it is through. A replica that holds
        nothing, and for which nothing is left, gets one that another has held for too long.

        Args:
            replica: The replica that asks.
            n_items: How many it may get.
            at: The time, in seconds.
            busy: Whether it has something to do, though it be done already.
            pace_s: Seconds that it takes for an item, if that is known.
        """
        held = self._leases.held_by(replica)
        if n_items <= 0 or any(lease.item in self._suspects for lease in held):
            return []
        idle = not held and not busy
        until = self._open_until()
        alone = min((i for i in self._suspects if i < until and self._is_open(i)), default=None)
        if alone is None or idle:
            self._draining = None
        elif self._draining in (None, replica):
            self._draining = replica
            return []
        if alone is not None and idle:
            return [self._grant(alone, replica, at)]
        granted: list[tuple[int, int]] = []
        while len(granted) < n_items and (item := self._take()) is not None:
            granted.append(self._grant(item, replica, at))
        if not granted and idle and pace_s is not None:
            granted = self._lease_again(replica, at, self.STRAGGLING * pace_s)
        return sorted(granted)

    def adopt(self, replica: int, held: Iterable[tuple[int, int]], at: float = 0.0) -> None:
        """Takes note of leases of which nothing is known here, and that a replica says it has.

        An earlier coordinator granted them; or they ended when the item was done, and it no longer
        is, since a shard has forgotten it.

        Args:
            replica: Who holds them.
            held: Pairs of item and lease number; those that are known or done are passed over.
            at: The time, in seconds.
        """
        for item, number in held:
            if item < self.plan.n_items and item not in self.done:
                self._leases.adopt(item, number, replica, at)

    def note_held(self, replica: int, items: Collection[int], at: float, patience_s: float) -> None:
        """Takes note of what a replica says it holds.

        A lease that it has neither named nor reported for so long has been lost on its way to the
        replica, and ends. What is being pushed is not named for a while.

        Args:
            replica: Who says so.
            items: The items that it holds.
            at: The time, in seconds.
            patience_s: How long a lease may go without being named.
        """
        for lease in self._leases.held_by(replica):
            if lease.item in items:
                lease.named_at = at
            elif at - lease.named_at > patience_s:
                self._end(lease)

    def report(self, replica: int, item: int, now: int) -> None:
        """Notes that a replica has pushed an item to every shard; the shards' sets will confirm."""
        lease = self._leases.find(item, replica)
        if lease is None and self._is_open(item):  # leased by an earlier coordinator
            lease = self._leases.grant(item, replica, 0.0)
        if lease is not None:
            self._leases.report(lease, now)

    def give_back(self, replica: int, items: Iterable[int]) -> list[int]:
        """Ends a replica's leases of items that it will not do; returns those that it did have."""
        ended = []
        for item in items:
            lease = self._leases.find(item, replica)
            if lease is not None:
                self._end(lease)
                ended.append(item)
        return ended

    def leave(self, replica: int) -> None:
        """Ends all leases of a replica that goes, but for what it has reported."""
        self.give_back(replica, self.held_by(replica))
        if self._draining == replica:
            self._draining = None

    def lose(self, replica: int, *, suspicious: bool = True) -> list[int]:
        """Ends all leases of a dead replica, reported or not; returns the items that are free now.

        Args:
            replica: Who died.
            suspicious: Whether one of the items that it held may be why.
        """
        leases = self._leases.of_replica(replica)
        if suspicious:
            held = [lease.item for lease in leases if lease.reported_at is None]
            for item in self._suspects.note_death(held):
                self.condemn(item, REASON)
        self.leave(replica)
        for lease in leases:
            if lease.reported_at is not None:
                self._end(lease)
        return sorted(lease.item for lease in leases if self._is_open(lease.item))

    def condemn(self, item: int, reason: str) -> None:
        """Has an item set aside: it is not leased any more, and the shards are to be told."""
        if item not in self.done:
            self._barred.condemn(item, reason)

    def take_untold(self) -> dict[int, str]:
        """What the shards are to be told to set aside; see :meth:`Barred.take_untold`."""
        return self._barred.take_untold()

    def take_forgotten(self) -> list[Forgotten]:
        """What shards that were started again turned out to have forgotten, since the last call."""
        return self._accounts.take_forgotten()

    def observe(self, states: Sequence[ShardState], asked_at: int) -> None:
        """Takes in the shards' accounts of themselves; that of a fenced start is passed over.

        Args:
            states: One of each shard, in order.
            asked_at: The count of time before the shards were asked: an item that was reported
                before then and that a shard lacks is not on its way any more, and becomes free.
        """
        gained, lost = self._accounts.see(states)
        for begin, _ in lost.intervals[:1]:
            self._next_fresh = min(self._next_fresh, begin)
        self._next_fresh = max(self._next_fresh, min(self.done.below, self.plan.n_items))
        self._end_those_done(gained)
        self._suspects.clear(self.done)
        for lease in self._leases.reported_before(asked_at):
            self._end(lease)
        for item in self._barred.follow(self._accounts):
            self._put_back(item)

    def _end_those_done(self, new: ItemSet) -> None:
        # Of the two, the smaller is gone through: a run that is gone on with has much done at once.
        some = new if len(new) < len(self._leases) else list(self._leases.items)
        for item in [item for item in some if item in new and item in self._leases]:
            for lease in self._leases.of_item(item):
                self._leases.end(lease)

    def _is_open(self, item: int) -> bool:
        """Whether it must be done, and nobody has it."""
        return (
            item < self.plan.n_items
            and item not in self._leases
            and item not in self._barred
            and item not in self.done
        )

    def _is_free(self, item: int) -> bool:
        return self._is_open(item) and item not in self._suspects

    def _take(self) -> int | None:
        """The lowest free item of the open epochs; it must be leased now."""
        until = min(self._open_until(), self.plan.n_items)
        while self._returned and not self._is_free(self._returned[0]):
            heapq.heappop(self._returned)
        if self._returned and self._returned[0] < min(self._next_fresh, until):
            return heapq.heappop(self._returned)
        while self._next_fresh < until:
            self._next_fresh += 1
            if self._is_free(self._next_fresh - 1):
                return self._next_fresh - 1
        return None

    def _lease_again(self, replica: int, at: float, after_s: float) -> list[tuple[int, int]]:
        for lease in self._leases.longest_held(at - after_s):
            item = lease.item
            wanted = item not in self._barred and item not in self._suspects
            if lease.replica != replica and wanted and item < self._open_until():
                return [self._grant(item, replica, at)]
        return []

    def _grant(self, item: int, replica: int, at: float) -> tuple[int, int]:
        return item, self._leases.grant(item, replica, at).number

    def _end(self, lease: Lease) -> None:
        if self._leases.end(lease):
            self._put_back(lease.item)

    def _put_back(self, item: int) -> None:
        if item < self._next_fresh:  # else it will be come to
            heapq.heappush(self._returned, item)

    def _open_until(self) -> int:
        oldest = self.done.below // self.plan.items_per_epoch
        return (oldest + self.EPOCHS_OPEN) * self.plan.items_per_epoch
