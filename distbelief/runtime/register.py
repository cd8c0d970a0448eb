"""Who serves, as the supervisor has it and as the run's folder says it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distbelief.errors import DataError, SupersededError
from distbelief.serving import Endpoint, Serving, read_serving, write_serving
from distbelief.storage import Storage


class Register:
    """Changes who serves, and has it written; for one caller at a time.

    Args:
        storage: The run's folder.
        serving: Who serves now, which is written already.
        tell: Told of every change, for processes that will be started.
        say: Tells the user.
    """

    def __init__(
        self,
        storage: Storage,
        serving: Serving,
        tell: Callable[[Serving], None],
        say: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._tell = tell
        self._say = say
        self.serving = serving
        self.unwritten = False
        """Whether the folder could not be written to, and says what was before."""

    def change(self, **fields: Any) -> None:
        """Changes some fields of who serves; see :class:`~distbelief.serving.Serving`."""
        self.serving = self.serving.changed(**fields)
        self._tell(self.serving)
        self.write()

    def write(self) -> None:
        """Writes it; if that cannot be, it is to be tried again.

        Raises:
            SupersededError: a later start of the run has written who serves.
        """
        try:
            self._require_current()
            write_serving(self._storage, self.serving)
        except OSError as error:
            if not self.unwritten:
                self._say(f"cannot write serving.json, and it is tried again: {error}")
            self.unwritten = True
            return
        self.unwritten = False

    def _require_current(self) -> None:
        there: Serving | None = None
        with suppress(DataError):  # what is damaged is written anew
            there = read_serving(self._storage)
        if there is not None and there.run > self.serving.run:
            raise SupersededError("the run", there.run)

    def serve(self, endpoint: Endpoint) -> None:
        """This start of a shard serves from now on; a twin that does is none any more."""
        shards = list(self.serving.shards)
        shards[endpoint.shard] = endpoint
        twins = tuple(e for e in self.serving.twins if e != endpoint)
        self.change(shards=tuple(shards), twins=twins)

    def twin_of(self, shard: int) -> Endpoint | None:
        """What follows a shard, if anything does."""
        return next((e for e in self.serving.twins if e.shard == shard), None)

    def add_twin(self, twin: Endpoint) -> None:
        """This start of a shard follows the one that serves."""
        self.change(twins=(*self.serving.twins, twin))

    def drop_twin(self, shard: int, incarnation: int) -> None:
        """That start of a shard is no twin any more, if it was one."""
        twins = tuple(
            e for e in self.serving.twins if (e.shard, e.incarnation) != (shard, incarnation)
        )
        if twins != self.serving.twins:
            self.change(twins=twins)
