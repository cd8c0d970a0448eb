"""Keeps a run's shards serving, and their twins beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import DataError, ProcessLostError, RunError
from distbelief.observe.report import Report
from distbelief.runtime.feeding import Feeding, Unfed
from distbelief.runtime.later import Later
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.recovery import Recoveries, Recovery
from distbelief.runtime.register import Register
from distbelief.runtime.snapshots import usable
from distbelief.runtime.world import Post, ProcessEnd, ProcessUp, World
from distbelief.serving import Endpoint

AGAIN_S = 2.0
"""What could not be done is tried again after so long."""


@dataclass(slots=True)
class _Starting:
    """A shard that is to come up: whether as a twin, and what it mends."""

    twin: bool = False
    recovery: Recovery | None = None


class ShardKeeper:
    """Restarts shards and twins; has one caller at a time.

    A shard's place is taken by its twin, which has all that it acknowledged; without one it starts
    anew, alone, from the newest snapshot that loads. Who serves is written into the run's folder
    first, and what it names no more is fenced off by that.

    Args:
        prepared: The run.
        world: Where shards are started.
        register: Who serves.
        recoveries: Takes what has been mended.
        later: Does what must wait.
        say: Tells the user.

    Attributes:
        n_anew: How often a shard was started anew, which forgets; a twin that takes over does not.
    """

    def __init__(
        self,
        prepared: Prepared,
        world: World,
        register: Register,
        recoveries: Recoveries,
        later: Later,
        say: Callable[[str], None],
    ) -> None:
        self._prepared = prepared
        self._world = world
        self._register = register
        self._recoveries = recoveries
        self._later = later
        self._say = say
        self._has_twins = prepared.config.cluster.shard_replication > 1
        self._incarnations = [e.incarnation for e in register.serving.shards]
        self._starting: dict[Post, _Starting] = {}
        self._down: dict[int, Recovery] = {}
        self._feeding = Feeding(len(self._incarnations), world.shard_at)
        self._unfed = Unfed()
        self._damaged: dict[int, set[int]] = {}
        self.n_anew = 0

    def close(self) -> None:
        """Feeds no other twin."""
        self._feeding.close()

    @property
    def all_serve(self) -> bool:
        """Whether every shard serves."""
        return not self._down

    def begin(self) -> None:
        """The run has started: shards get their twins."""
        if self._has_twins:
            for shard in range(len(self._incarnations)):
                self._start_twin(shard)

    def take_feeds(self) -> None:
        """Takes note of twins that have been given their state, or could not be."""
        for fed in self._feeding.over():
            twin = fed.twin
            post = Post("shard", twin.shard, twin.incarnation)
            if fed.error is None:
                self._later.started(f"twin of shard {twin.shard}")
                self._register.add_twin(twin)
                continue
            self._tell_lost(post, "twin", str(fed.error))
            self._world.dismiss(post)
            self._twin_ended(twin.shard, post, ProcessEnd(post, fed.error))

    def check_twins(self, report: Report) -> None:
        """Replaces a twin that its primary does not feed any more, whatever the folder says."""
        for twin in self._unfed.found(report, self._register.serving, time.monotonic()):
            post = Post("shard", twin.shard, twin.incarnation)
            lost = ProcessLostError(f"the twin of {post.name}", "its primary has given it up")
            self._world.dismiss(post)
            self.ended(ProcessEnd(post, lost), report.elapsed_s)

    def ended(self, end: ProcessEnd, t: float) -> None:
        """Takes note of the end of a shard or twin; ``t`` is the run's time in seconds.

        Raises:
            DistBeliefError: it has died too often, or there is nothing that it could start from.
        """
        post = end.post
        starting = self._starting.pop(post, None)
        shard, cause = post.number, end.cause
        primary = self._register.serving.shards[shard]
        twin, fed = self._register.twin_of(shard), self._feeding.twin_of(shard)
        is_twin = (starting is not None and starting.twin) or any(
            e is not None and e.incarnation == post.start for e in (twin, fed)
        )
        role = "twin" if is_twin else "primary"
        served = primary.incarnation == post.start and shard not in self._down
        if not is_twin and starting is None and not served:
            return  # one that was given up before
        self._tell_lost(post, role, cause)
        if is_twin:
            self._twin_ended(shard, post, end)
            return
        recovery = starting.recovery if starting else None
        if recovery is not None and isinstance(end.error, DataError):
            self._say(f"{end.error}; going further back")
            self._damaged.setdefault(shard, set()).add(recovery.snapshot or 0)
            self._start_shard(shard, recovery)
            return
        recovery = recovery or Recovery(post.name, cause, t, time.monotonic())
        self._down[shard] = recovery
        self._dismiss_unfed(shard)
        if starting is None and twin is not None and self._promote(shard, twin, recovery):
            return
        self._say(f"{post.name} was lost ({cause}); it starts anew from a snapshot")
        self._later.died(post.name, end, lambda: self._start_shard(shard, recovery))

    def up(self, up: ProcessUp) -> None:
        """Takes note of a shard or twin that has come up."""
        post, endpoint = up.post, up.endpoint
        starting = self._starting.pop(post, None)
        if starting is None or endpoint is None:
            self._world.dismiss(post)
            return
        self._tell_started(endpoint, "twin" if starting.twin else "primary")
        if starting.recovery is None:
            self._feeding.begin(self._register.serving.shards[post.number], endpoint)
            return
        self._serve(endpoint, starting.recovery)
        self._recoveries.served(post.number, starting.recovery)
        if self._has_twins:
            self._start_twin(post.number)

    def _dismiss_unfed(self, shard: int) -> None:
        """A twin that has nothing yet is of no use to who will serve, whose number is higher."""
        unfed = [post for post, s in self._starting.items() if s.twin and post.number == shard]
        if fed := self._feeding.twin_of(shard):
            self._feeding.drop(shard)
            unfed.append(Post("shard", shard, fed.incarnation))
        for post in unfed:
            self._starting.pop(post, None)
            self._world.dismiss(post)

    def _twin_ended(self, shard: int, post: Post, end: ProcessEnd) -> None:
        self._register.drop_twin(shard, post.start)
        self._feeding.drop(shard)
        self._release_twin(shard)
        self._say(f"the twin of {post.name} was lost ({end.cause}); another is started")
        self._later.died(f"twin of {post.name}", end, lambda: self._start_twin(shard))

    def _release_twin(self, shard: int) -> None:
        """The primary shall not wait for a twin that is lost; if it is lost too, no matter."""
        primary = self._register.serving.shards[shard]
        try:
            with self._world.shard_at(primary) as service:
                service.release_twin()
        except RunError as error:
            self._world.emit("twin_not_released", shard=shard, cause=str(error))

            def again() -> None:
                same = self._register.serving.shards[shard] == primary
                fed = self._feeding.twin_of(shard) or self._register.twin_of(shard)
                if same and shard not in self._down and fed is None:  # else the next one would go
                    self._release_twin(shard)

            self._later.do(again, after_s=AGAIN_S)

    def _start_shard(self, shard: int, recovery: Recovery) -> None:
        self.n_anew += 1
        try:
            manifest = self._newest_that_may_load(shard)
        except OSError as error:
            self._say(f"cannot look for a snapshot, and it is tried again: {error}")
            self._later.do(lambda: self._start_shard(shard, recovery), after_s=AGAIN_S)
            return
        recovery.how, recovery.snapshot = "snapshot", manifest.number
        post = self._next_shard(shard)
        recovery.incarnation = post.start
        self._starting[post] = _Starting(recovery=recovery)
        spec = self._prepared.shard_spec(shard, incarnation=post.start, snapshot=manifest)
        self._world.start_shard(spec)

    def _newest_that_may_load(self, shard: int) -> Manifest:
        """The newest snapshot of which this shard's part is not known to be damaged.

        The shard's own process holds it against its digest, which may take long.
        """
        n_shards = len(self._incarnations)
        found = usable(self._prepared.storage, n_shards, self._prepared.abandoned, self._say)
        for manifest in found:
            if manifest.number not in self._damaged.get(shard, ()):
                return manifest
        cause = f"no snapshot in {self._prepared.storage.url} has an undamaged file for it"
        raise ProcessLostError(f"shard {shard}", cause)

    def _start_twin(self, shard: int) -> None:
        if shard in self._down or self._has_twin(shard):  # the first gets it once it serves
            return
        post = self._next_shard(shard)
        self._starting[post] = _Starting(twin=True)
        self._world.start_shard(self._prepared.twin_spec(shard, post.start))

    def _has_twin(self, shard: int) -> bool:
        """Whether there is one, or will be."""
        starting = any(s.twin and post.number == shard for post, s in self._starting.items())
        there = self._feeding.twin_of(shard) or self._register.twin_of(shard)
        return starting or there is not None

    def _next_shard(self, shard: int) -> Post:
        self._incarnations[shard] += 1
        return Post("shard", shard, self._incarnations[shard])

    def _serve(self, endpoint: Endpoint, recovery: Recovery) -> None:
        self._register.serve(endpoint)
        recovery.seconds = time.monotonic() - recovery.noticed_at
        recovery.incarnation = endpoint.incarnation
        self._later.started(f"shard {endpoint.shard}")
        self._down.pop(endpoint.shard, None)

    def _promote(self, shard: int, twin: Endpoint, recovery: Recovery) -> bool:
        """Has the twin take its primary's place; whether it did."""
        recovery.how, recovery.items = "twin", 0
        self._serve(twin, recovery)
        try:
            with self._world.shard_at(twin) as service:
                service.promote()
        except RunError as error:
            self._down[shard] = recovery
            recovery.items = None
            post = Post("shard", shard, twin.incarnation)
            self._tell_lost(post, "twin", ProcessEnd(post, error).cause)
            self._world.dismiss(post)
            return False
        recovery.seconds = time.monotonic() - recovery.noticed_at
        self._say(f"shard {shard} was lost ({recovery.cause}); its twin has taken its place")
        self._recoveries.complete(recovery)
        self._later.do(lambda: self._start_twin(shard))
        return True

    def _tell_started(self, e: Endpoint, role: str) -> None:
        about = {k: v for k, v in asdict(e).items() if k not in ("begin", "end")}
        self._world.emit("shard_started", role=role, **about)

    def _tell_lost(self, post: Post, role: str, cause: str) -> None:
        about = {"shard": post.number, "incarnation": post.start, "role": role, "cause": cause}
        self._world.emit("shard_lost", **about)
