"""What is not to be done: items that a shard has set aside, and those that all of them shall."""

from __future__ import annotations

from distbelief.coordinator.accounts import ShardAccounts


class Barred:
    """The items that are leased to nobody, whatever the shards lack. Not thread-safe."""

    def __init__(self) -> None:
        self._condemned: dict[int, str] = {}
        self._on_shards: dict[int, str] = {}
        self._untold: dict[int, str] = {}

    def __contains__(self, item: int) -> bool:
        return item in self._condemned or item in self._on_shards

    @property
    def on_shards(self) -> dict[int, str]:
        """What some shard has set aside and not every shard has applied, with the reasons."""
        return dict(self._on_shards)

    def condemn(self, item: int, reason: str) -> None:
        """Has an item set aside that is not done; the first reason stands."""
        if item not in self:
            self._condemned[item] = self._untold[item] = reason

    def follow(self, accounts: ShardAccounts) -> list[int]:
        """Goes by what the shards have now; returns the items that are to be done after all.

        A shard may have forgotten what it had set aside.
        """
        before = self._condemned.keys() | self._on_shards.keys()
        self._on_shards = accounts.set_aside()
        for item in [item for item in self._condemned if accounts.applied(item)]:
            del self._condemned[item]
        barred = {**self._condemned, **self._on_shards}
        self._untold = {item: why for item, why in barred.items() if item not in accounts.done}
        return sorted(before - barred.keys())

    def take_untold(self) -> dict[int, str]:
        """Items that a shard lacks and must be told to set aside, with the reasons, each once.

        Those that a shard still lacks when the shards are looked at again come again.
        """
        taken, self._untold = self._untold, {}
        return taken
