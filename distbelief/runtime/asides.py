"""Items that are set aside: every shard is told, and the user which examples they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from distbelief.errors import DistBeliefError
from distbelief.services import ShardService

SHOWN = 32
"""So many examples of an item are named."""


class Asides:
    """Tells the shards what is set aside; a shard that is away is told later. One caller at a time.

    Args:
        shards: All of them.
        emit: Writes an event.
        names_of: The names of an item's examples.
    """

    def __init__(
        self,
        shards: Sequence[ShardService],
        emit: Callable[..., None],
        names_of: Callable[[int], Sequence[str]],
    ) -> None:
        self._shards = tuple(shards)
        self._emit = emit
        self._names_of = names_of
        self._untold: dict[int, str] = {}
        self._recorded: set[int] = set()

    def tell(self, items: Mapping[int, str]) -> None:
        """Has these set aside too, each with its reason.

        Raises:
            TransportError: a shard is away; the next call tells it what it has not heard.
        """
        self._untold.update(items)
        for item, reason in list(self._untold.items()):
            for shard in self._shards:
                shard.set_aside((item,), reason)
            del self._untold[item]
            if item not in self._recorded:  # a shard that forgot it was told once more
                self._recorded.add(item)
                self._emit("set_aside", item=item, reason=reason, files=self._files(item))

    def _files(self, item: int) -> list[str]:
        try:
            return list(islice(self._names_of(item), SHOWN))
        except (DistBeliefError, OSError) as error:  # the item is set aside all the same
            return [f"cannot be named: {error}"]
