"""Who is at work, from a run's folder."""

from __future__ import annotations

from typing import Any

from distbelief.chaos.members import Member, chosen, members
from distbelief.serving import Endpoint, Serving

Event = dict[str, Any]


def endpoint(shard: int, incarnation: int, pid: int) -> Endpoint:
    return Endpoint(shard, 0, 4, incarnation, "h:1", "n", "h", pid)


SERVING = Serving(
    number=3,
    run=1,
    shards=(endpoint(0, 1, 10), endpoint(1, 2, 11)),
    twins=(endpoint(1, 3, 13),),
)


def joined(replica: int, pid: int) -> list[Event]:
    about = {"t": 1.0, "replica": replica, "pid": pid}
    placed = {"kind": "replica_placed", "node": f"node of {replica}", "stage": 0}
    return [{**about, **placed}, {**about, "kind": "replica_joined"}]


def beside(kind: str, start: int, pid: int) -> Event:
    return {"t": 1.0, "kind": f"{kind}_started", "start": start, "pid": pid, "node": "n"}


def test_before_anything_is_told() -> None:
    assert members(None, []) == []


def test_all_that_are_at_work() -> None:
    events = [
        *joined(1, 21),
        beside("coordinator", 1, 30),
        beside("evaluator", 1, 40),
        *joined(0, 20),
    ]
    assert members(SERVING, events) == [
        Member("replica", "replica 0", 20, 0, node="node of 0"),
        Member("replica", "replica 1", 21, 1, node="node of 1"),
        Member("shard", "shard 0", 10, 0, 1, "n"),
        Member("shard", "shard 1", 11, 1, 2, "n"),
        Member("twin", "shard 1", 13, 1, 3, "n"),
        Member("coordinator", "the coordinator", 30, 0, 1, "n"),
        Member("evaluator", "the evaluator", 40, 0, 1, "n"),
    ]


def test_one_that_is_being_started_is_not_there_yet() -> None:
    (placed, _) = joined(0, 20)
    assert members(None, [placed]) == []


def test_what_was_lost_is_not_there() -> None:
    lost = {"t": 2.0, "kind": "replica_lost", "replica": 0}
    gone = {"t": 2.0, "kind": "evaluator_lost", "start": 1}
    events = [*joined(0, 20), beside("evaluator", 1, 40), lost, gone]
    assert members(None, events) == []
    again = [*events, *joined(1, 22), beside("evaluator", 2, 41)]
    assert [(m.kind, m.pid) for m in members(None, again)] == [("replica", 22), ("evaluator", 41)]


def test_the_newest_coordinator_counts() -> None:
    (found,) = members(None, [beside("coordinator", 1, 30), beside("coordinator", 2, 31)])
    assert (found.pid, found.start) == (31, 2)


def test_a_choice_goes_round_those_of_a_kind() -> None:
    there = members(SERVING, [*joined(0, 20)])
    found = [chosen(there, "shard", choice) for choice in range(4)]
    assert [m.pid for m in found if m is not None] == [10, 11, 10, 11]
    assert chosen(there, "coordinator", 7) is None
