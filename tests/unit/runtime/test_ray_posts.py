"""Who holds which post, with no cluster: actors and answers are stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from distbelief.errors import DataError, ProcessLostError
from distbelief.runtime import ray_posts
from distbelief.runtime.ray_posts import Posts
from distbelief.runtime.world import Post, ProcessEnd, ProcessUp
from distbelief.serving import Endpoint

SHARD = Post("shard", 1, 2)
COORDINATOR = Post("coordinator", 0, 1)
ENDPOINT = Endpoint(shard=1, begin=0, end=4, incarnation=2, address="h:1", node="n")


@dataclass(eq=False)
class Call:
    """An answer to come."""

    answer: Any = None
    error: Exception | None = None


@dataclass(eq=False)
class Actor:
    """Is watched by a call that ends when it does."""

    watches: list[Call] = field(default_factory=list)

    @property
    def watch(self) -> Any:
        def remote() -> Call:
            self.watches.append(Call())
            return self.watches[-1]

        return SimpleNamespace(remote=remote)


@dataclass
class World:
    """Posts, with the clock and the staff that they have to do with."""

    now: float = 100.0
    killed: list[Actor] = field(default_factory=list)

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)

    def get(self, call: Call) -> Any:
        if call.error is not None:
            raise call.error
        return call.answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(ray_posts, "ray", SimpleNamespace(get=world.get))
    monkeypatch.setattr(ray_posts, "time", SimpleNamespace(monotonic=lambda: world.now))
    return world


Start = Callable[..., tuple[Actor, Call]]


@pytest.fixture
def posts(world: World) -> Posts:
    return Posts(cast(Any, world))


def start(posts: Posts, post: Post, allowed_s: float = 180.0) -> tuple[Actor, Call]:
    actor, starting = Actor(), Call()
    posts.start(post, actor, starting, allowed_s)
    return actor, starting


def raised(cause: Exception) -> Exception:
    """What Ray makes of an exception in a call."""
    return cast(Exception, RayTaskError("start", "trace", cause).as_instanceof_cause())


def test_what_starts_is_up_and_then_watched(world: World, posts: Posts) -> None:
    shard, starting = start(posts, SHARD)
    coordinator, other = start(posts, COORDINATOR)
    assert posts.calls == [starting, other]
    assert posts.happened([]) == []
    starting.answer = ENDPOINT
    assert posts.happened([starting]) == [ProcessUp(SHARD, ENDPOINT)]
    assert posts.calls == [*shard.watches, other]
    other.answer = {"node": "n", "host": "h", "pid": 7}
    assert posts.happened([other]) == [ProcessUp(COORDINATOR, about=other.answer)]
    assert posts.calls == [*shard.watches, *coordinator.watches]
    assert world.killed == []
    assert posts.actor(SHARD) is shard


@pytest.mark.parametrize("up", [False, True])
def test_what_dies_is_told_whenever_it_does(up: bool, world: World, posts: Posts) -> None:
    shard, call = start(posts, SHARD)
    if up:
        call.answer = ENDPOINT
        posts.happened([call])
        (call,) = shard.watches
    call.error = ActorDiedError()
    (end,) = posts.happened([call])
    assert isinstance(end, ProcessEnd)
    assert end.post == SHARD
    assert isinstance(end.error, ProcessLostError)
    assert end.error.what == "shard 1"
    assert end.cause == "its process died"


def test_what_the_user_can_mend_stays_that(posts: Posts) -> None:
    _, starting = start(posts, SHARD)
    starting.error = raised(DataError("/data", "is gone"))
    (end,) = posts.happened([starting])
    assert isinstance(end, ProcessEnd)
    assert (type(end.error), end.cause) == (DataError, "/data: is gone")


def test_what_ends_by_itself_is_lost(posts: Posts) -> None:
    """As a shard does that is fenced off."""
    shard, starting = start(posts, SHARD)
    starting.answer = ENDPOINT
    posts.happened([starting])
    (end,) = posts.happened(shard.watches)
    assert isinstance(end, ProcessEnd)
    assert str(end.error) == "shard 1 was lost: it ended by itself"


def test_a_start_that_takes_too_long_is_given_up(world: World, posts: Posts) -> None:
    start(posts, SHARD, allowed_s=10.0)
    _, other = start(posts, COORDINATOR, allowed_s=10.0)
    other.answer = {}
    posts.happened([other])
    world.now += 10.0
    assert posts.happened([]) == []
    world.now += 0.001
    (end,) = posts.happened([])  # what is up already may take as long as it likes
    assert isinstance(end, ProcessEnd)
    assert (end.post, str(end.error)) == (SHARD, "shard 1 was lost: it did not start")


def test_one_that_is_dismissed_is_ended_and_heard_no_more(world: World, posts: Posts) -> None:
    shard, starting = start(posts, SHARD)
    start(posts, COORDINATOR)
    assert posts.names() == {"shard 1 start 2": SHARD, "coordinator start 1": COORDINATOR}
    posts.dismiss(SHARD)
    posts.dismiss(SHARD)  # there is none any more
    assert world.killed == [shard]
    assert posts.names() == {"coordinator start 1": COORDINATOR}
    assert posts.happened([starting]) == []
    assert starting not in posts.calls
