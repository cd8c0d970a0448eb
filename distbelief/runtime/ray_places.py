"""Where the starts of each shard run: the places that a run has reserved for it."""

from __future__ import annotations

import time

from distbelief.runtime.placement import SHARD
from distbelief.runtime.ray_groups import Groups
from distbelief.runtime.shunned import Shunned


class Places:
    """Who has which place. A shard has one, or two for its twin; it changes places with it.

    Args:
        groups: Reserves them.
        n_shards: Shards of the run.
        copies: Places of each.
        shunned: Nodes that are not to be used.
    """

    def __init__(self, groups: Groups, n_shards: int, copies: int, shunned: Shunned) -> None:
        self._groups = groups
        self._n_shards = n_shards
        self._n_places = n_shards * copies
        self._shunned = shunned
        self._taken: dict[tuple[int, int], int] = {}

    def first(self, shard: int, incarnation: int) -> int:
        """The place of the first start of a shard, which is reserved as it is."""
        self._taken[shard, incarnation] = shard
        return shard

    def another(self, shard: int, incarnation: int) -> int:
        """A place of the shard that no start of it has; reserved anew if its node is gone."""
        taken = {place for (k, _), place in self._taken.items() if k == shard}
        mine = range(shard, self._n_places, self._n_shards)
        place = next(p for p in mine if p not in taken)
        beside = (self._groups.node_of(SHARD, p) for p in taken)
        shunned = {*self._shunned.nodes(time.monotonic()), *(n for n in beside if n is not None)}
        self._taken[shard, incarnation] = place
        self._groups.renew(SHARD, place, shunned=shunned)
        return place

    def free(self, shard: int, incarnation: int) -> None:
        """That start of the shard is there no more."""
        self._taken.pop((shard, incarnation), None)
