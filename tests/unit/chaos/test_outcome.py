"""What became of what was done, and what counts as a promise broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distbelief.audit import Audit, CounterExample
from distbelief.chaos.members import Member
from distbelief.chaos.outcome import (
    MOST_GROWTH_NBYTES,
    Done,
    Findings,
    Outcome,
    leftovers,
    outcomes,
)
from distbelief.chaos.schedule import Action
from distbelief.chaos.watch import Changes
from distbelief.serving import Endpoint, Serving

REPLICA = Member("replica", "replica 4", 20, 4)
SHARD = Member("shard", "shard 1", 11, 1, 2)
TWIN = Member("twin", "shard 1", 13, 1, 3)


def done(whom: Member | None, at: float, stopped_s: float = 0.0) -> Done:
    kind = whom.kind if whom else "twin"
    return Done(Action(at, "stop" if stopped_s else "kill", kind, 0, stopped_s), at, whom)


def recovery(what: str, t: float, seconds: float | None, **fields: Any) -> dict[str, Any]:
    return {"what": what, "t": t, "seconds": seconds, "items_leased_again": 5, **fields}


def fed(at: float, incarnation: int) -> Changes:
    twins = (Endpoint(1, 0, 4, incarnation, "h:1"),)
    changes = Changes()
    changes.look(at, Serving(number=9, run=1, shards=(), twins=twins))
    return changes


def test_seconds_count_from_the_deed() -> None:
    killed = done(SHARD, 10.0)
    (found,) = outcomes(
        [killed], [recovery("shard 1", 11.5, 2.25, how="snapshot", snapshot=7)], Changes()
    )
    assert found == Outcome(killed, "from snapshot 7", 3.75, 5)


def test_a_recovery_belongs_to_one_action() -> None:
    first, second = done(SHARD, 10.0), done(SHARD, 30.0)
    told = [
        recovery("shard 1", 9.0, 1.0),
        recovery("the coordinator", 11.0, 1.0),
        recovery("shard 1", 10.0, 1.0, how="twin"),
        recovery("shard 1", 31.0, 2.0, how="snapshot", snapshot=1),
    ]
    found = outcomes([first, second], told, Changes())
    assert [(o.how, o.seconds, o.ok) for o in found] == [
        ("its twin serves", 1.0, True),
        ("from snapshot 1", 3.0, True),
    ]


def test_what_nothing_replaced_is_a_problem() -> None:
    told = [recovery("replica 4", 10.5, None)]
    (found,) = outcomes([done(REPLICA, 10.0)], told, Changes())
    assert (found.how, found.seconds, found.ok) == ("nothing took its place", None, False)
    (found,) = outcomes([done(REPLICA, 10.0)], [], Changes())
    assert (found.how, found.ok) == ("was never missed", False)


def test_a_process_that_was_stopped_need_not_be_missed() -> None:
    stopped = done(REPLICA, 10.0, 2.0)
    assert outcomes([stopped], [], Changes())[0].ok
    later = [recovery("replica 4", 100.0, 3.0)]
    assert outcomes([stopped], later, Changes())[0].seconds is None
    given_up = [recovery("replica 4", 14.0, 3.0)]
    assert outcomes([stopped], given_up, Changes())[0] == Outcome(stopped, "another serves", 7.0, 5)


def test_twins() -> None:
    killed = done(TWIN, 10.0)
    assert outcomes([killed], [], fed(18.0, 4)) == [Outcome(killed, "another twin follows", 8.0, 0)]
    assert not outcomes([killed], [], fed(18.0, 3))[0].ok
    assert outcomes([done(TWIN, 10.0, 2.0)], [], fed(18.0, 3))[0].ok


def test_nobody_was_there() -> None:
    (found,) = outcomes([done(None, 10.0)], [], Changes())
    assert (found.how, found.ok) == ("there was no twin", True)


def test_files_that_must_not_be_left(tmp_path: Path) -> None:
    for name in ("snapshots/000001", "snapshots/000002", "pushes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "snapshots/000001/manifest.json").touch()
    assert leftovers(tmp_path) == ["snapshots/000002"]
    (tmp_path / "snapshots/000002/manifest.json").touch()
    assert leftovers(tmp_path) == []
    (tmp_path / "pushes/.x.1-2.tmp").touch()
    (tmp_path / "stop").touch()
    assert leftovers(tmp_path) == ["pushes/.x.1-2.tmp", "stop"]


def findings(**fields: Any) -> Findings:
    good = {
        "code": 130,
        "status": "interrupted",
        "examples_applied": 96,
        "audit": Audit(counter_example=None, examples=90, skipped=6),
    }
    return Findings(**{**good, **fields})


def test_a_run_that_kept_its_promises() -> None:
    assert findings().problems == []
    assert findings(growth_nbytes=MOST_GROWTH_NBYTES).problems == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"status": "failed"}, "did not end in order: failed"),
        ({"status": ""}, "it said nothing"),
        ({"code": None}, "had to be killed"),
        ({"examples_applied": 97}, "the summary has 97 examples, the logs 96"),
        (
            {"audit": Audit(counter_example=CounterExample("a log", 3, "twice"))},
            "the audit is not clean: a log",
        ),
        (
            {"outcomes": [Outcome(done(REPLICA, 10.0), "nothing took its place", ok=False)]},
            "kill of replica 4 at 10 s: nothing took its place",
        ),
        ({"processes": ["77 python"]}, "a process is left: 77 python"),
        ({"files": ["stop"]}, "a file is left: stop"),
        ({"growth_nbytes": MOST_GROWTH_NBYTES + (1 << 20)}, "has grown by 65 MiB"),
        ({"said": "x\nTraceback (most recent call last):\n"}, "printed a traceback"),
        ({"said": "(raylet) A worker died or was killed"}, "printed words of Ray's"),
    ],
)
def test_each_promise_that_is_broken_is_told(fields: dict[str, Any], problem: str) -> None:
    (found,) = findings(**fields).problems
    assert problem in found
