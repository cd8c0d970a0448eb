"""Keeps what a run cannot do without: shards and their twins, the coordinator, the evaluator."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distbelief.observe.report import Report
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.later import Later
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.recovery import Recoveries, Recovery
from distbelief.runtime.register import Register
from distbelief.runtime.shard_keeper import ShardKeeper
from distbelief.runtime.world import Happening, Post, ProcessEnd, ProcessUp, Role, World


@dataclass
class Members:
    """The replicas, as a new coordinator must know them."""

    running: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


class Keeper:
    """Restarts what dies, in the supervisor's thread; a context manager for its own helpers.

    Args:
        prepared: The run.
        world: Where processes are started.
        members: The replicas; kept by the supervisor.
        recovered: Takes each recovery as it ends.
        say: Tells the user.
    """

    def __init__(
        self,
        prepared: Prepared,
        world: World,
        members: Members,
        *,
        recovered: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self._prepared = prepared
        self._world = world
        self._members = members
        self._say = say
        self._register = Register(prepared.storage, world.serving, world.take_serving, say)
        self._recoveries = Recoveries(recovered, world.emit, say)
        self._later = Later()
        self._shards = ShardKeeper(
            prepared, world, self._register, self._recoveries, self._later, say
        )
        self._starts = {"coordinator": 1, "evaluator": 1}
        self._starting: dict[Post, Recovery] = {}
        self._ended_posts: set[Post] = set()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self._shards.close()

    @property
    def settled(self) -> bool:
        """Whether every shard serves."""
        return self._shards.all_serve and not self._register.unwritten

    @property
    def incarnations(self) -> tuple[int, ...]:
        """Of the shards that serve."""
        return tuple(e.incarnation for e in self._register.serving.shards)

    @property
    def n_anew(self) -> int:
        """How often a shard was started anew, which forgets; a twin that takes over does not."""
        return self._shards.n_anew

    def begin(self) -> None:
        """The run has started: shards get their twins."""
        self._shards.begin()

    def tick(self, report: Report | None) -> None:
        """Does what is due; to be called often."""
        self._later.tick()
        self._shards.take_feeds()
        if self._register.unwritten:
            self._register.write()
        if report is not None:
            self._recoveries.count(report)
            self._shards.check_twins(report)

    def happened(self, what: Happening, t: float) -> None:
        """Takes note of an end or a start; ``t`` is the run's time in seconds.

        Raises:
            DistBeliefError: it cannot be mended.
        """
        # A twin that has been fed can take the place of what has just died.
        self._shards.take_feeds()
        if isinstance(what, ProcessUp):
            if what.post.role == "shard":
                self._shards.up(what)
            else:
                self._up(what)
        elif isinstance(what, ProcessEnd):
            self._world.dismiss(what.post)
            if what.post.role == "shard":
                self._shards.ended(what, t)
            else:
                self._ended(what, t)

    def _ended(self, end: ProcessEnd, t: float) -> None:
        post = end.post
        recovery = self._starting.pop(post, None)
        if post.start != self._starts[post.role] or post in self._ended_posts:
            return  # it has been replaced already, or will be
        self._ended_posts = {p for p in self._ended_posts if p.role != post.role} | {post}
        self._world.emit(f"{post.role}_lost", start=post.start, cause=end.cause)
        recovery = recovery or Recovery(post.name, end.cause, t, time.monotonic())
        self._say(f"{post.name} was lost ({end.cause}); another takes its place")
        begin = self._start_coordinator if post.role == "coordinator" else self._start_evaluator
        self._later.died(post.name, end, lambda: begin(recovery))

    def _up(self, up: ProcessUp) -> None:
        post = up.post
        recovery = self._starting.pop(post, None)
        if recovery is None:
            self._world.dismiss(post)
            return
        self._later.started(post.name)
        self._world.emit(f"{post.role}_started", start=post.start, **(up.about or {}))
        recovery.seconds = time.monotonic() - recovery.noticed_at
        self._recoveries.complete(recovery)

    def _start_coordinator(self, recovery: Recovery) -> None:
        post = self._next("coordinator")
        # First of all: the old one, if it is not dead, must not act any more.
        self._register.change(coordinator=post.start)
        self._starting[post] = recovery
        spec = HostSpec.of(
            self._prepared,
            start=post.start,
            replicas=frozenset(self._members.running),
            lost=frozenset(self._members.lost),
        )
        self._world.start_coordinator(spec)

    def _start_evaluator(self, recovery: Recovery) -> None:
        post = self._next("evaluator")
        self._starting[post] = recovery
        self._world.start_evaluator(post.start)

    def _next(self, role: Role) -> Post:
        self._starts[role] += 1
        return Post(role, 0, self._starts[role])
