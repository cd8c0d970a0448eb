"""What becomes of a replica's stages, with no cluster: actors and answers are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from distbelief.config import TrainConfig
from distbelief.errors import (
    DataError,
    DistBeliefError,
    ProcessLostError,
    ShardRefusedError,
    StageLostError,
    TransportError,
)
from distbelief.replication import ClusterConfig, ReplicaConfig
from distbelief.runtime import ray_replicas
from distbelief.runtime.endpoints import Access
from distbelief.runtime.placement import REPLICA
from distbelief.runtime.ray_replicas import CAUSE_S, Replicas
from distbelief.runtime.world import ReplicaEnd
from distbelief.serving import Serving
from distbelief.storage import LocalStorage

ACCESS = Access(
    storage=LocalStorage(Path("/nowhere")),
    serving=Serving(number=1, run=1, shards=()),
    token="secret",
)
DIED = ActorDiedError()
MENDABLE = DataError("/data", "it is empty")
REFUSED = ShardRefusedError(0, "layout", "another")
AWAY = TransportError(0, "UNAVAILABLE", "no answer")


def lost_touch(stage: int) -> StageLostError:
    return StageLostError(0, stage, "no answer")


def raised(cause: Exception) -> RayTaskError:
    """What Ray makes of an exception in a call."""
    return cast(RayTaskError, RayTaskError("run", "trace", cause).as_instanceof_cause())


@dataclass(eq=False)
class Call:
    """An answer to come."""

    stage: int
    arguments: tuple[Any, ...] = ()
    over: bool = False
    error: Exception | None = None


@dataclass(eq=False)
class Actor:
    """Of one stage; keeps its calls."""

    slot: int
    stage: int
    n_threads: int
    meetings: list[Call] = field(default_factory=list)
    runs: list[Call] = field(default_factory=list)

    def _call(self, calls: list[Call], *arguments: Any) -> Call:
        calls.append(Call(self.stage, arguments))
        return calls[-1]

    @property
    def run(self) -> Any:
        return SimpleNamespace(remote=partial(self._call, self.runs))

    @property
    def meet(self) -> Any:
        return SimpleNamespace(remote=partial(self._call, self.meetings))


class World:
    """Ray, the staff and the groups, as far as replicas need them."""

    def __init__(self) -> None:
        self.created: list[Actor] = []
        self.alive: list[Actor] = []
        self.renewed: list[int] = []
        self.renewed_with: list[tuple[frozenset[str], bool]] = []
        self.now = 0.0
        self.later: list[tuple[float, Call, Exception | None]] = []

    def in_group(self, kind: type, role: str, slot: int, stage: int, *, threads: Any) -> Actor:
        assert role == REPLICA
        actor = Actor(slot, stage, threads.fixed or 10 * threads.neighbours)
        self.created.append(actor)
        self.alive.append(actor)
        return actor

    def kill(self, actor: Actor) -> None:
        self.alive.remove(actor)

    def neighbours(self, slot: int, stage: int) -> int:
        return slot + stage + 1

    def node_of(self, role: str, slot: int, stage: int) -> str:
        assert role == REPLICA
        return f"node of {slot}.{stage}"

    def renew(
        self, role: str, slot: int, *, shunned: Iterable[str] = (), hung: bool = False
    ) -> None:
        assert role == REPLICA
        assert not any(actor.slot == slot for actor in self.alive)
        self.renewed.append(slot)
        self.renewed_with.append((frozenset(shunned), hung))

    def monotonic(self) -> float:
        return self.now

    def wait(
        self, calls: Sequence[Call], *, num_returns: int, timeout: float
    ) -> tuple[list[Call], list[Call]]:
        """Time goes on until enough are over."""
        limit = self.now + timeout
        for at, call, error in sorted(self.later, key=lambda entry: entry[0]):
            if sum(c.over for c in calls) >= num_returns or at > limit:
                break
            self.now = max(self.now, at)
            call.over, call.error = True, error
        found = [call for call in calls if call.over]
        if len(found) < num_returns:
            self.now = limit
        return found[:num_returns], []

    def get(self, call: Call) -> None:
        assert call.over
        if call.error is not None:
            raise call.error


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(ray_replicas, "ray", SimpleNamespace(wait=world.wait, get=world.get))
    monkeypatch.setattr(ray_replicas, "time", SimpleNamespace(monotonic=world.monotonic))
    return world


@pytest.fixture
def replicas_of(world: World) -> Callable[..., Replicas]:
    def make(*groups: str, **options: Any) -> Replicas:
        config = TrainConfig(
            replica=ReplicaConfig(**options), cluster=ClusterConfig(replica_group=groups)
        )
        anything: Any = world
        return Replicas(cast(Any, SimpleNamespace(config=config)), anything, anything)

    return make


def start(replicas: Replicas, replica: int) -> None:
    replicas.start(replica, ACCESS)


def end(replicas: Replicas, *calls: Call, error: Exception | None = None) -> list[ReplicaEnd]:
    for call in calls:
        call.over, call.error = True, error
    return replicas.ended(calls)


def seats(calls: Sequence[Call]) -> list[tuple[int, int, int]]:
    """Replica, slot and stage of each call."""
    return [call.arguments[1:4] for call in calls]


def test_each_stage_has_an_actor_before_anything_starts(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("2x stages=2", "1x threads=5")
    assert [(a.slot, a.stage) for a in world.created] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [a.n_threads for a in world.created] == [10, 20, 20, 30, 5]
    assert replicas.calls == []
    for replica in (7, 8, 9):
        start(replicas, replica)
    assert len(world.created) == 5
    assert seats(replicas.calls) == [(7, 0, 0), (7, 0, 1), (8, 1, 0), (8, 1, 1), (9, 2, 0)]


def test_who_has_a_call(replicas_of: Callable[..., Replicas]) -> None:
    replicas = replicas_of("2x stages=2")
    start(replicas, 7)
    start(replicas, 8)
    calls = replicas.calls
    assert [replicas.seat(call) for call in calls] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    end(replicas, calls[1])
    assert replicas.seat(calls[1]) is None


def test_a_successor_keeps_off_the_nodes_that_are_shunned(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=1")
    start(replicas, 0)
    (call,) = replicas.calls
    call.over, call.error = True, DIED
    assert len(replicas.ended([call], shunned={"node of 0.0"})) == 1
    assert world.renewed_with == [(frozenset({"node of 0.0"}), False)]


def test_all_stages_get_the_meeting_of_the_first(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=3", "1x stages=1")
    start(replicas, 0)
    start(replicas, 1)
    assert [len(actor.meetings) for actor in world.created] == [1, 0, 0, 0]
    (meeting,) = world.created[0].meetings
    assert meeting.arguments == (3,)
    assert [call.arguments[4] for call in replicas.calls] == [meeting, meeting, meeting, None]
    assert not meeting.over, "nobody waits for it here"
    assert all(call.arguments[5:] == (ACCESS,) for call in replicas.calls)


def test_a_replica_has_ended_in_order_when_all_stages_have(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("2x stages=2")
    start(replicas, 0)
    start(replicas, 1)
    first, second, *others = replicas.calls
    assert end(replicas, second) == []
    assert replicas.calls == [first, *others]
    assert len(world.alive) == 4
    assert end(replicas, first) == [ReplicaEnd(0, None)]
    assert replicas.calls == others
    assert [a.slot for a in world.alive] == [1, 1]
    assert world.renewed == []
    assert world.now == 0.0, "there was nothing to wait for"


def test_several_end_at_once(world: World, replicas_of: Callable[..., Replicas]) -> None:
    replicas = replicas_of("2x stages=2", "1x stages=1")
    for replica in range(3):
        start(replicas, replica)
    ends = end(replicas, *replicas.calls)
    assert ends == [ReplicaEnd(replica, None) for replica in range(3)]
    assert (replicas.calls, world.alive) == ([], [])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_lost_stage_is_a_lost_replica(
    world: World, replicas_of: Callable[..., Replicas], stage: int
) -> None:
    replicas = replicas_of("2x stages=3")
    start(replicas, 3)
    start(replicas, 4)
    calls = replicas.calls
    for other in {0, 1, 2} - {stage}:
        world.later.append((0.5, calls[other], raised(lost_touch(other))))
    (lost,) = end(replicas, calls[stage], error=DIED)
    assert lost.replica == 3
    assert isinstance(lost.error, ProcessLostError)
    assert str(lost.error) == f"stage {stage} of replica 3 was lost: its process died"
    assert world.now == 0.5
    # None of its processes is left, and the other replica goes on.
    assert [(a.slot, a.stage) for a in world.alive] == [(1, 0), (1, 1), (1, 2)]
    assert replicas.calls == calls[3:]
    assert world.renewed == [0]
    # Its successor has its slot, and processes of its own.
    start(replicas, 5)
    assert seats(replicas.calls)[3:] == [(5, 0, 0), (5, 0, 1), (5, 0, 2)]
    assert len(world.created) == 9


def test_a_process_that_is_all_of_its_replica(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=1")
    start(replicas, 0)
    (lost,) = end(replicas, *replicas.calls, error=DIED)
    assert str(lost.error) == "its process was lost: its process died"
    assert lost.cause == "its process died"
    assert world.now == 0.0


def test_stages_that_never_answer_are_not_waited_for_long(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=2")
    start(replicas, 0)
    (lost,) = end(replicas, replicas.calls[1], error=raised(lost_touch(1)))
    assert str(lost.error) == "stage 1 of replica 0 lost touch with another: no answer"
    assert world.now == CAUSE_S
    assert (world.alive, replicas.calls) == ([], [])


@pytest.mark.parametrize(
    ("first", "others", "cause", "waited_s"),
    [
        # What the user can mend is the cause, and nothing else is waited for.
        (MENDABLE, [(1.0, lost_touch(1)), (2.0, lost_touch(2))], MENDABLE, 0.0),
        (lost_touch(0), [(1.0, MENDABLE), (2.0, lost_touch(2))], MENDABLE, 1.0),
        (AWAY, [(1.0, lost_touch(1)), (2.0, REFUSED)], REFUSED, 2.0),
        # Losing touch is never the cause if another stage knows better.
        (lost_touch(0), [(1.0, lost_touch(1)), (2.5, AWAY)], AWAY, 2.5),
        (AWAY, [(1.0, lost_touch(1)), (2.0, lost_touch(2))], AWAY, 2.0),
        # What comes too late is not heard.
        (lost_touch(0), [(1.0, lost_touch(1)), (3.5, AWAY)], lost_touch(0), CAUSE_S),
        # A stage that had ended in order says nothing.
        (AWAY, [(1.0, None), (2.0, lost_touch(2))], AWAY, 2.0),
    ],
)
def test_which_error_is_the_cause(
    world: World,
    replicas_of: Callable[..., Replicas],
    first: DistBeliefError,
    others: list[tuple[float, DistBeliefError | None]],
    cause: DistBeliefError,
    waited_s: float,
) -> None:
    replicas = replicas_of("1x stages=3")
    start(replicas, 0)
    calls = replicas.calls
    for call, (at, error) in zip(calls[1:], others, strict=True):
        world.later.append((at, call, None if error is None else raised(error)))
    (lost,) = end(replicas, calls[0], error=raised(first))
    assert (type(lost.error), str(lost.error)) == (type(cause), str(cause))
    assert world.now == waited_s


def test_the_first_stage_dies_before_it_opens_the_meeting(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=2")
    start(replicas, 0)
    first, second = replicas.calls
    # Ray hands the actor's death on to the call that waits for what it was to answer.
    world.later.append((0.5, first, DIED))
    (lost,) = end(replicas, second, error=raised(DIED))
    assert isinstance(lost.error, ProcessLostError)
    assert lost.error.what == "stage 0 of replica 0"


def test_a_meeting_that_cannot_be_opened_is_the_cause_of_both(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=2")
    start(replicas, 0)
    (lost,) = end(replicas, *replicas.calls, error=raised(AWAY))
    assert str(lost.error) == str(AWAY)
    assert world.alive == []


def test_an_error_of_nobody_s_is_told_with_its_type(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=1")
    start(replicas, 0)
    (lost,) = end(replicas, *replicas.calls, error=raised(ModuleNotFoundError("no mine")))
    assert str(lost.error) == "its process was lost: ModuleNotFoundError: no mine"


def test_slots_are_taken_in_the_order_in_which_they_became_free(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=2", "1x stages=1", "1x stages=1")
    for replica in range(3):
        start(replicas, replica)
    end(replicas, replicas.calls[3], error=DIED)
    for call in replicas.calls[:2]:
        world.later.append((0.0, call, DIED))
    end(replicas, replicas.calls[0], error=DIED)
    assert world.renewed == [2, 0]
    start(replicas, 3)
    start(replicas, 4)
    assert seats(replicas.calls) == [(1, 1, 0), (3, 2, 0), (4, 0, 0), (4, 0, 1)]


# Those that fall silent


def test_a_replica_that_is_given_up_ends_whole_and_leaves_its_node(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("2x stages=2")
    start(replicas, 3)
    start(replicas, 4)
    assert replicas.names() == {
        "replica 3 stage 0": 3,
        "replica 3 stage 1": 3,
        "replica 4 stage 0": 4,
        "replica 4 stage 1": 4,
    }
    assert replicas.node_of(4, 1) == "node of 1.1"
    others = replicas.calls[:2]
    lost = replicas.give_up(4, "no beat for 4 s", shunned={"node1"})
    assert lost is not None
    assert lost.replica == 4
    assert str(lost.error) == "its process was lost: no beat for 4 s"
    # What hangs may hold its room still: its successor gets other room, on other nodes.
    assert (world.renewed, world.renewed_with) == ([1], [(frozenset({"node1"}), True)])
    assert [(a.slot, a.stage) for a in world.alive] == [(0, 0), (0, 1)]
    assert replicas.calls == others
    assert set(replicas.names().values()) == {3}
    start(replicas, 5)
    assert seats(replicas.calls)[2:] == [(5, 1, 0), (5, 1, 1)]


def test_one_that_has_ended_already_is_not_given_up(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=1")
    start(replicas, 0)
    end(replicas, *replicas.calls)
    assert replicas.give_up(0, "no beat for 4 s", shunned=()) is None
    assert world.renewed == []


def test_one_that_died_may_take_the_room_that_it_had(
    world: World, replicas_of: Callable[..., Replicas]
) -> None:
    replicas = replicas_of("1x stages=1")
    start(replicas, 0)
    end(replicas, *replicas.calls, error=DIED)
    assert world.renewed_with == [(frozenset(), False)]
