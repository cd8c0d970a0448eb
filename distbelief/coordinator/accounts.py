"""The shards as they were last seen: what is done, and what one of them has forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distbelief.server.account import accounted_by
from distbelief.server.applied import ItemSet, intersection, union
from distbelief.types import ShardState


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a shard lacks since it has been started again.

    Attributes:
        shard: Which shard.
        incarnation: Its new one.
        items: How many items it had, applied or set aside, and has no more.
        clock_before: Its clock as it was last seen.
        clock_after: Its clock now.
    """

    shard: int
    incarnation: int
    items: int
    clock_before: int
    clock_after: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A shard as it was last seen; before that, with nothing."""

    incarnation: int = 0
    clock: int = 0
    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: Mapping[int, str] = field(default_factory=dict)
    accounted: ItemSet = field(default_factory=ItemSet)

    @classmethod
    def of(cls, state: ShardState) -> Seen:
        """What its account says."""
        applied = ItemSet(state.applied)
        return cls(state.incarnation, state.clock, applied, state.set_aside, accounted_by(state))


class ShardAccounts:
    """All shards as they were last seen. Not thread-safe.

    Attributes:
        done: The items that every shard has, applied or set aside.
        owed: Those that shards have forgotten, and that are not done again yet.
    """

    def __init__(self, n_shards: int) -> None:
        self.done = ItemSet()
        self.owed = ItemSet()
        self._seen = [Seen() for _ in range(n_shards)]
        self._forgotten: list[Forgotten] = []

    def see(self, states: Sequence[ShardState]) -> tuple[ItemSet, ItemSet]:
        """Takes in accounts; returns the items that are done now, and those that no longer are.

        That of a start that has been seen to be replaced is passed over.
        """
        for state in states:
            before = self._seen[state.shard]
            if state.incarnation >= before.incarnation:
                self._seen[state.shard] = now = Seen.of(state)
                self._note_forgotten(state.shard, before, now)
        before_all, self.done = self.done, intersection(seen.accounted for seen in self._seen)
        self.owed = _minus(self.owed, self.done)
        return _minus(self.done, before_all), _minus(before_all, self.done)

    def set_aside(self) -> dict[int, str]:
        """What some shard has set aside, with the reason.

        An item that every shard has applied, and one has set aside as well, counts as applied.
        """
        aside = {item: why for seen in self._seen for item, why in seen.set_aside.items()}
        return {item: why for item, why in aside.items() if not self.applied(item)}

    def applied(self, item: int) -> bool:
        """Whether every shard has applied it."""
        return all(item in seen.applied for seen in self._seen)

    def take_forgotten(self) -> list[Forgotten]:
        """What shards that were started again turned out to have forgotten, since the last call."""
        taken, self._forgotten = self._forgotten, []
        return taken

    def _note_forgotten(self, shard: int, before: Seen, now: Seen) -> None:
        if now.incarnation == before.incarnation:
            return
        lacking = _minus(before.accounted, now.accounted)
        n_items = len(lacking)
        if n_items:
            self.owed = union([self.owed, lacking])
            self._forgotten.append(
                Forgotten(shard, now.incarnation, n_items, before.clock, now.clock)
            )


def _minus(some: ItemSet, others: ItemSet) -> ItemSet:
    """Those of some items that are not among others."""
    end = some.intervals[-1][1] if some.intervals else 0
    return intersection([some, ItemSet(others.gaps(end))])
