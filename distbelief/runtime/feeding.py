"""Twins being given the state of the shard that they will follow, beside all else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from distbelief.errors import RunError
from distbelief.observe.report import Report
from distbelief.services import ShardService
from distbelief.serving import Endpoint, Serving

DOUBT_S = 5.0
"""What was seen of a primary may be older than its twin: for so long it is not believed, and not
before the shards have been looked at twice since."""


@dataclass(frozen=True, slots=True)
class Fed:
    """A twin has been fed, or could not be."""

    primary: Endpoint
    twin: Endpoint
    error: RunError | None


class Feeding:
    """Has shards feed their twins, each in a thread. Has one caller at a time.

    Args:
        n_shards: Shards of the run.
        shard_at: Reaches one start of a shard.
    """

    def __init__(
        self, n_shards: int, shard_at: Callable[[Endpoint], AbstractContextManager[ShardService]]
    ) -> None:
        self._shard_at = shard_at
        # One that a hung shard is to feed holds its thread until that one ends.
        self._pool = ThreadPoolExecutor(4 * n_shards, thread_name_prefix="feed-twin")
        self._feeds: dict[Future[None], tuple[Endpoint, Endpoint, ExitStack]] = {}

    def close(self) -> None:
        """Begins no other, and ends those under way."""
        for shard in {twin.shard for _, twin, _ in self._feeds.values()}:
            self.drop(shard)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, primary: Endpoint, twin: Endpoint) -> None:
        """Has ``primary`` feed ``twin``; does not block."""
        stack = ExitStack()
        service = stack.enter_context(self._shard_at(primary))

        def feed() -> None:
            service.release_twin()  # a former one, which its writer may be waiting for
            service.feed_twin(twin.address)

        self._feeds[self._pool.submit(feed)] = primary, twin, stack

    def twin_of(self, shard: int) -> Endpoint | None:
        """The twin that is being given the state of that shard."""
        return next((twin for _, twin, _ in self._feeds.values() if twin.shard == shard), None)

    def drop(self, shard: int) -> None:
        """Ends it for that shard's twin, and does not tell how."""
        for feed in [f for f, (_, twin, _) in self._feeds.items() if twin.shard == shard]:
            _, _, stack = self._feeds.pop(feed)
            stack.close()

    def over(self) -> list[Fed]:
        """What has come to its end since the last call; raises what is no trouble of a shard's."""
        found = []
        for feed in [f for f in self._feeds if f.done()]:
            primary, twin, stack = self._feeds.pop(feed)
            stack.close()
            error = feed.exception()
            if error is not None and not isinstance(error, RunError):
                raise error
            found.append(Fed(primary, twin, error))
        return found


class Unfed:
    """Finds twins that their primaries have given up, whatever the run's folder says; no clock."""

    def __init__(self) -> None:
        self._since: dict[Endpoint, tuple[float, int]] = {}

    def found(self, report: Report, serving: Serving, at: float) -> list[Endpoint]:
        """Those that have seemed so for :data:`DOUBT_S`; each is told once.

        Args:
            report: How the run stands.
            serving: Who serves.
            at: The time, in seconds.
        """
        fed = {(s["shard"], s["incarnation"]): s["twin"] for s in report.shards}
        unfed = [
            twin
            for twin in serving.twins
            if fed.get((twin.shard, serving.shards[twin.shard].incarnation), twin.incarnation)
            != twin.incarnation
        ]
        self._since = {twin: self._since.get(twin, (at, report.looks)) for twin in unfed}
        over = [
            twin
            for twin, (since, looks) in self._since.items()
            if at - since > DOUBT_S and report.looks > looks + 1
        ]
        for twin in over:
            del self._since[twin]
        return over
