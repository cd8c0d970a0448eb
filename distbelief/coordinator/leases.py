"""Who holds what: the leases that are out, found by item and by replica."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MOST_HOLDERS = 2
"""An item is in the hands of so many replicas at most."""


@dataclass(slots=True)
class Lease:
    """An item in the hands of a replica.

    Attributes:
        item: Which item.
        number: The lease's own number; later leases have higher ones.
        replica: Who holds it.
        since: When it was granted, in seconds.
        named_at: When the holder last said that it holds it, in seconds.
        reported_at: At which count of time the holder said that it had pushed it, if it has.
    """

    item: int
    number: int
    replica: int
    since: float
    named_at: float
    reported_at: int | None = None


class Leases:
    """The leases that are out. Not thread-safe.

    Every call costs what it returns, but for :meth:`longest_held`, which looks at all.

    Args:
        first: Number of the first lease that is granted.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._by_item: dict[int, list[Lease]] = {}
        self._by_replica: dict[int, dict[int, Lease]] = {}
        self._reported: dict[tuple[int, int], Lease] = {}

    def __contains__(self, item: int) -> bool:
        """Whether anybody holds the item, or has reported it as pushed."""
        return item in self._by_item

    def __len__(self) -> int:
        """Items that are in somebody's hands."""
        return len(self._by_item)

    @property
    def items(self) -> Iterable[int]:
        """The items that are in somebody's hands."""
        return self._by_item.keys()

    @property
    def n_reported(self) -> int:
        """Items that somebody has reported as pushed."""
        return len({item for item, _ in self._reported})

    def grant(self, item: int, replica: int, at: float) -> Lease:
        """A new lease, of the next number."""
        lease = Lease(item, self._next, replica, at, at)
        self._next += 1
        self._add(lease)
        return lease

    def adopt(self, item: int, number: int, replica: int, at: float) -> None:
        """A lease of another coordinator; not kept if the item has as many holders as it may."""
        self._next = max(self._next, number + 1)
        holders = self._by_item.get(item, [])
        if len(holders) < MOST_HOLDERS and all(lease.replica != replica for lease in holders):
            self._add(Lease(item, number, replica, at, at))

    def find(self, item: int, replica: int) -> Lease | None:
        """The lease under which the replica has the item."""
        return self._by_replica.get(replica, {}).get(item)

    def of_item(self, item: int) -> list[Lease]:
        """All leases of an item."""
        return list(self._by_item.get(item, ()))

    def of_replica(self, replica: int) -> list[Lease]:
        """All leases of a replica, reported or not."""
        return list(self._by_replica.get(replica, {}).values())

    def held_by(self, replica: int) -> list[Lease]:
        """Those that a replica has not reported as pushed."""
        return [lease for lease in self.of_replica(replica) if lease.reported_at is None]

    def report(self, lease: Lease, now: int) -> None:
        """Notes that its holder has pushed the item."""
        lease.reported_at = now
        self._reported[lease.item, lease.replica] = lease

    def reported_before(self, now: int) -> list[Lease]:
        """Those that were reported before that count of time."""
        return [
            lease
            for lease in self._reported.values()
            if lease.reported_at is not None and lease.reported_at < now
        ]

    def end(self, lease: Lease) -> bool:
        """Ends a lease that is out; whether nobody has the item any more."""
        self._reported.pop((lease.item, lease.replica), None)
        theirs = self._by_replica[lease.replica]
        del theirs[lease.item]
        if not theirs:
            del self._by_replica[lease.replica]
        holders = self._by_item[lease.item]
        holders.remove(lease)
        if not holders:
            del self._by_item[lease.item]
        return not holders

    def longest_held(self, before: float) -> Iterable[Lease]:
        """The only leases of items that were granted before then and are not reported.

        The longest held first; of those of one moment the highest item, which its holder would
        come to last.
        """
        only = (holders[0] for holders in self._by_item.values() if len(holders) == 1)
        found = [lease for lease in only if lease.reported_at is None and lease.since < before]
        return sorted(found, key=lambda lease: (lease.since, -lease.item))

    def _add(self, lease: Lease) -> None:
        self._by_item.setdefault(lease.item, []).append(lease)
        self._by_replica.setdefault(lease.replica, {})[lease.item] = lease
