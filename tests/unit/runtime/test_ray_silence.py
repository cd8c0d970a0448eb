"""Nodes of actors that Ray cannot reach are shunned, before Ray takes them for dead."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from distbelief.coordinator.heartbeats import Silent
from distbelief.errors import ProcessLostError, RunError
from distbelief.runtime import ray_errors
from distbelief.runtime.ray_silence import Silence
from distbelief.runtime.shunned import Shunned
from distbelief.runtime.world import Post, ReplicaEnd

SHARD = Post("shard", 1, 2)


@dataclass(eq=False)
class Call:
    """A call that is over, and whose it was."""

    error: Exception | None = None
    post: Post | None = None
    seat: tuple[int, int] | None = None


def get(call: Call) -> None:
    if call.error is not None:
        raise call.error


def unreachable() -> Exception:
    return ActorUnavailableError("Socket closed", None)


def raised(cause: Exception) -> Exception:
    found: Exception = RayTaskError("run", "a traceback", cause).as_instanceof_cause()
    return found


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Silence:
    """Of a shard whose node is known, and of replicas."""
    monkeypatch.setattr(ray_errors, "ray", SimpleNamespace(get=get))
    posts: Any = SimpleNamespace(holder=lambda call: call.post)
    replicas: Any = SimpleNamespace(
        seat=lambda call: call.seat, node_of=lambda replica, stage: f"node of {replica}.{stage}"
    )
    pulses: Any = None
    found = Silence(pulses, posts, replicas, Shunned())
    found.note_node(SHARD, "node of the shard")
    return found


def test_nothing_is_shunned_where_nothing_happens(silence: Silence) -> None:
    assert silence.shun_unreachable([]) == frozenset()


def test_the_nodes_of_those_that_cannot_be_reached(silence: Silence) -> None:
    first = [Call(unreachable(), post=SHARD), Call(seat=(8, 0))]
    assert silence.shun_unreachable(first) == {"node of the shard"}
    second = [Call(unreachable(), seat=(7, 1))]
    assert silence.shun_unreachable(second) == {"node of the shard", "node of 7.1"}
    assert silence.shun_unreachable([]) == {"node of the shard", "node of 7.1"}


def test_a_process_whose_node_is_not_known_yet(silence: Silence) -> None:
    assert silence.shun_unreachable([Call(unreachable(), post=Post("shard", 0, 1))]) == frozenset()


@pytest.mark.parametrize(
    "error",
    [
        None,
        ActorDiedError(),  # its node lives, and has told so
        raised(RunError("it fell over")),
        raised(unreachable()),  # what it could not reach itself
    ],
)
def test_other_ends_say_nothing_of_the_node(error: Exception | None, silence: Silence) -> None:
    assert silence.shun_unreachable([Call(error, post=SHARD)]) == frozenset()


def test_a_replica_of_which_two_stages_are_silent_at_once_is_given_up_once() -> None:
    running = {"replica 7 stage 0": 7, "replica 7 stage 1": 7}
    forgotten: list[str] = []

    def give_up(replica: int, cause: str, *, shunned: frozenset[str]) -> ReplicaEnd:
        assert shunned == {"the node"}
        running.clear()  # with one of its stages all are gone
        return ReplicaEnd(replica, ProcessLostError("its process", cause))

    def node_of(replica: int, stage: int) -> str:
        assert replica in running.values()
        return "the node"

    late = [Silent(name, 4.5, "silent") for name in running]
    pulses: Any = SimpleNamespace(late=lambda: late, forget=forgotten.append)
    posts: Any = SimpleNamespace(names=dict)
    replicas: Any = SimpleNamespace(names=lambda: dict(running), give_up=give_up, node_of=node_of)
    (end,) = Silence(pulses, posts, replicas, Shunned()).given_up()
    assert isinstance(end, ReplicaEnd)
    assert (end.replica, end.cause) == (7, "silent")
    assert forgotten == ["replica 7 stage 0", "replica 7 stage 1"]
