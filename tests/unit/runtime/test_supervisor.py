"""The supervisor, in a world that does as it is told and in which time passes by waiting alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import torch
from torch import nn

from distbelief.config import ClusterConfig, TrainConfig
from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import (
    ConfigError,
    DismissedError,
    DistBeliefError,
    ProcessLostError,
    RunError,
    ShardRefusedError,
    UnexpectedError,
    UsageError,
    as_distbelief_error,
)
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.observe import view
from distbelief.observe.report import Report, progress_line
from distbelief.runtime import keeper, later, replica_keeper, shard_keeper
from distbelief.runtime import supervisor as module
from distbelief.runtime.folder import Probe
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.replica_keeper import FIRST_WAIT_S
from distbelief.runtime.resume import Resumed
from distbelief.runtime.signals import Stop
from distbelief.runtime.supervisor import DRAIN_S, WAIT_S, Supervisor
from distbelief.runtime.world import Happening, Post, ProcessEnd, ProcessUp, ReplicaEnd
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import digest
from distbelief.services import ShardService
from distbelief.serving import Endpoint, Serving
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import ShardFile, ShardState

N_REPLICAS, N_SHARDS = 3, 2
LOST = RunError("it fell over")
SHARD_LOST = ProcessLostError("shard 1", "killed")
STARTED_AT = 1000.0
SERVING = Serving(
    number=1,
    run=1,
    shards=(
        Endpoint(shard=0, begin=0, end=5, incarnation=1, address="a:1"),
        Endpoint(shard=1, begin=5, end=9, incarnation=1, address="a:2"),
    ),
)


def standing(*incarnations: int) -> tuple[dict[str, Any], ...]:
    """How the shards stand, as far as a supervisor looks at it."""
    return tuple(
        {"shard": shard, "incarnation": incarnation, "forgotten": 0, "twin": 0}
        for shard, incarnation in enumerate(incarnations)
    )


def report(items: Mapping[int, int] | None = None, **changes: Any) -> Report:
    """How a run stands; ``items`` are those that each replica has done."""
    fields: dict[str, Any] = {
        "elapsed_s": 12.346,
        "finished": False,
        "failure": "",
        "epoch": 1,
        "n_epochs": 2,
        "examples_applied": 0,
        "examples_skipped": 0,
        "examples_set_aside": 0,
        "total_examples": 1000,
        "images_per_second": 10.0,
        "mean_images_per_second": 10.0,
        "left_s": None,
        "losses": {},
        "learning_rate": 0.1,
        "staleness": {},
        "applied": 0,
        "repeated": 0,
        "refused": {},
        "replicas": tuple({"replica": r, "items": n} for r, n in (items or {}).items()),
        "shards": standing(1, 1),
        "snapshot": None,
        "validation": None,
        "mean_waiting": 0.0,
    }
    return Report(**{**fields, **changes})


def end(replica: int, error: DistBeliefError | None = LOST) -> ReplicaEnd:
    return ReplicaEnd(replica, error)


@dataclass
class Turn:
    """What one wait brings, and what the report after it says; either may be an error."""

    ends: Sequence[Happening] | BaseException = ()
    report: Report | BaseException | None = field(default_factory=report)
    stop: bool = False


@dataclass
class FakeWorld:
    """Takes its turns in order; after the last one, or when it is told to stop, it drains."""

    stop_: Stop
    turns: list[Turn]
    drain: list[Sequence[Happening] | BaseException] = field(default_factory=list)
    concluding: list[Sequence[Happening]] = field(default_factory=list)
    conclusion: Report | BaseException = field(
        default_factory=lambda: report(examples_applied=990, finished=True)
    )
    now: float = STARTED_AT
    calls: list[str] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    started_at: list[float] = field(default_factory=list)
    shards: list[ShardSpec] = field(default_factory=list)
    coordinators: list[HostSpec] = field(default_factory=list)
    serving: Serving = field(default_factory=lambda: SERVING)
    lost: list[tuple[int, str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    present: Report | BaseException | None = field(default_factory=report)
    held: int | None = 10
    """So many items, and one more for each replica before it, go to others when one dies."""
    start_error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def start_replica(self, replica: int) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.started.append(replica)
        self.started_at.append(self.now)

    def start_shard(self, spec: ShardSpec) -> None:
        self.shards.append(spec)

    def start_coordinator(self, spec: HostSpec) -> None:
        self.coordinators.append(spec)

    def start_evaluator(self, start: int) -> None:
        raise NotImplementedError

    def take_serving(self, serving: Serving) -> None:
        self.serving = serving

    def dismiss(self, post: Post) -> None:
        self.calls.append(f"dismiss {post}")

    def shard_at(self, endpoint: Endpoint) -> AbstractContextManager[ShardService]:
        raise NotImplementedError

    def wait(self, timeout_s: float) -> list[Happening]:
        self.now += timeout_s
        self.calls.append("wait")
        if self.stopped or not self.turns:
            ends = self.drain.pop(0) if self.drain else ()
        else:
            turn = self.turns.pop(0)
            ends, self.present = turn.ends, turn.report
            if turn.stop:
                self.stop_.event.set()
        if isinstance(ends, BaseException):
            raise ends
        return list(ends)

    def report(self) -> Report | None:
        if isinstance(self.present, BaseException):
            raise self.present
        return self.present

    def replica_lost(self, replica: int, cause: str) -> int | None:
        if self.present is None:
            return None
        self.lost.append((replica, cause))
        return self.held and self.held + replica

    def emit(self, kind: str, **fields: Any) -> None:
        self.calls.append(f"emit {kind}")
        self.events.append({"kind": kind, **fields})

    def stop(self) -> None:
        self.calls.append("stop")
        self.stopped = True

    def conclude(self, model_file: str, meanwhile: Callable[[], object]) -> Report:
        self.calls.append(f"conclude {model_file}")
        if self.concluding:
            self.drain = list(self.concluding)
            for _ in self.concluding:
                meanwhile()
        if isinstance(self.conclusion, BaseException):
            raise self.conclusion
        return self.conclusion

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


FINISHED = Turn(report=report(finished=True))
IN_ORDER = [[end(r, None) for r in range(N_REPLICAS)]]


@dataclass
class Run:
    """A supervisor with its world."""

    world: FakeWorld
    stop: Stop
    run_dir: Path
    supervisor: Supervisor
    said: list[str]

    def go(self) -> dict[str, Any]:
        return self.supervisor.run()

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found


class MakeRun:
    """Makes a run of three replicas from the turns that its world takes."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir = run_dir
        self.monkeypatch = monkeypatch

    def __call__(
        self, *turns: Turn, first_replica: int = 0, before: Resumed | None = None, **world: Any
    ) -> Run:
        stop, said = Stop(), list[str]()
        fake = FakeWorld(stop, list(turns), **world)
        now = staticmethod(lambda: fake.now)
        clock = type("Clock", (), {"monotonic": now, "time": now})
        for timed in (module, keeper, later, replica_keeper, shard_keeper, view):
            self.monkeypatch.setattr(timed, "time", clock)
        storage = LocalStorage(self.run_dir)
        layout = Layout.of(nn.Linear(2, 3).named_parameters())
        prepared = Prepared(
            config=TrainConfig(cluster=ClusterConfig(replicas=N_REPLICAS, shards=N_SHARDS)),
            plan=ItemPlan(n_examples=500, batch_size=10, n_push=1, n_items=100),
            layout=layout,
            initial=torch.zeros(layout.size),
            n_outputs=3,
            classes=("a", "b", "c"),
            digests=("d",),
            storage=storage,
            started_at=STARTED_AT,
            probe=Probe(storage, "word"),
            first_replica=first_replica,
            before=before,
        )
        supervisor = Supervisor(fake, prepared, stop, view.Lines(said.append))
        return Run(fake, stop, self.run_dir, supervisor, said)


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    return MakeRun(tmp_path, monkeypatch)


# From the start to the end


def test_a_run_that_finishes(make_run: MakeRun) -> None:
    run = make_run(Turn(), FINISHED, drain=[IN_ORDER[0][:1], IN_ORDER[0][1:]])
    result = run.go()
    assert run.world.started == [0, 1, 2]
    assert run.world.calls == [
        *("wait", "wait", "wait", "wait"),
        *("conclude model.safetensors", "emit end"),
    ]
    assert run.world.events == [{"kind": "end", "status": "finished"}]
    assert run.world.lost == []
    assert run.summary() == result
    assert (result["status"], result["examples_applied"]) == ("finished", 990)
    assert (result["replicas"], result["shards"]) == (N_REPLICAS, N_SHARDS)
    assert result["recoveries"] == []
    assert run.said == [progress_line(report(examples_applied=990, finished=True))]


def test_a_replica_that_ended_in_order_is_not_replaced_nor_waited_for(make_run: MakeRun) -> None:
    run = make_run(Turn([end(1, None)]), FINISHED, drain=[[end(0, None), end(2, None)]])
    run.go()
    assert (run.world.started, run.world.lost) == ([0, 1, 2], [])
    assert run.world.calls.count("wait") == 3


def test_a_line_every_few_seconds(make_run: MakeRun) -> None:
    a_line = round(view.LINE_S / WAIT_S)
    turns = [Turn(report=report(examples_applied=n)) for n in range(2 * a_line + 1)]
    run = make_run(*turns, FINISHED, drain=IN_ORDER[:])
    run.go()
    assert run.said[:-1] == [
        progress_line(report(examples_applied=n)) for n in (a_line, 2 * a_line)
    ]


def test_the_summary_is_as_new_as_the_newest_snapshot(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, str, int | None]] = []

    def write(storage: Storage, name: str, value: dict[str, Any]) -> None:
        snapshot = value["snapshot"]
        written.append((name, value["status"], snapshot and snapshot["number"]))
        write_json(storage, name, value)

    monkeypatch.setattr(module, "write_json", write)
    numbers = [None, 0, 0, 4, 4, 5]
    turns = [Turn(report=report(snapshot=n if n is None else {"number": n})) for n in numbers]
    last = report(finished=True, snapshot={"number": 6})
    run = make_run(*turns, FINISHED, drain=IN_ORDER[:], conclusion=last)
    run.go()
    running = [("summary.json", "running", n) for n in (0, 4, 5, None)]
    assert written == [*running, ("summary.json", "finished", 6)]


def test_replicas_of_a_resumed_run_have_numbers_of_their_own(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(8)], report({8: 1})),
        FINISHED,
        first_replica=7,
        drain=[[end(r, None) for r in (7, 9, 10)]],
    )
    run.go()
    assert run.world.started == [7, 8, 9, 10]


# Deaths


def test_the_dead_are_replaced_and_it_is_told(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(1), end(2, ProcessLostError("replica 2", "killed"))], report({1: 1, 2: 1})),
        Turn([end(3)], report(examples_applied=10)),
        FINISHED,
        drain=[[end(0, None), end(4, None), end(5, None)]],
    )
    result = run.go()
    assert run.world.started == [0, 1, 2, 3, 4, 5]
    killed = "replica 2 was lost: killed"
    assert run.world.lost == [(1, str(LOST)), (2, killed), (3, str(LOST))]
    recoveries = [
        {"what": f"replica {replica}", "cause": cause, "t": t, "seconds": None}
        | {"items_leased_again": 10 + replica}
        for t, (replica, cause) in zip((0.25, 0.25, 0.5), run.world.lost, strict=True)
    ]
    assert result["recoveries"] == recoveries
    assert run.said[0] == (
        "replica 1 was lost (it fell over); 11 items go to others, another takes its place"
    )
    assert run.said[2].endswith("13 items go to others, another takes its place")
    assert run.world.started_at == [1000.0, 1000.0, 1000.0, 1000.25, 1000.25, 1000.5]


@pytest.mark.parametrize(
    "turn", [Turn([end(1)], report(finished=True)), Turn([end(1)], stop=True)], ids=["end", "stop"]
)
def test_at_the_end_the_dead_are_told_and_not_replaced(turn: Turn, make_run: MakeRun) -> None:
    run = make_run(turn, drain=[[end(0, None), end(2, None)]])
    result = run.go()
    assert (run.world.started, run.world.lost) == ([0, 1, 2], [(1, str(LOST))])
    assert result["recoveries"] == []


def errors(n: int) -> list[RunError]:
    return [RunError(f"death {i}") for i in range(n)]


# Each turn: who dies, the items that each replica has done, the examples applied.
Deaths = list[tuple[list[int], dict[int, int], int]]
BARREN: dict[str, tuple[Deaths, bool]] = {
    "three at once": ([([0, 1, 2], {}, 0)], True),
    "three in a row": ([([0], {}, 0), ([3], {}, 0), ([4], {}, 0)], True),
    "two at once": ([([0, 1], {}, 0)], False),
    "two and a later one": ([([0, 1], {}, 0), ([], {}, 0), ([3], {}, 0)], True),
    "several that had worked": ([([0, 1, 2], {0: 1, 1: 5, 2: 2}, 80)], False),
    "several that had worked, twice": (
        [([0, 1, 2], {0: 1, 1: 1, 2: 1}, 30), ([3, 4, 5], {3: 1, 4: 1, 5: 1}, 30)],
        False,
    ),
    "one between that had worked": (
        [([0], {}, 0), ([1], {}, 0), ([2], {2: 1}, 0), ([3], {}, 0), ([4], {}, 0)],
        False,
    ),
    "it worked, and three after it did not": (
        [([0], {0: 1}, 10), ([1], {}, 10), ([2], {}, 10), ([3], {}, 10)],
        True,
    ),
    "others work on": ([([r], {9: r + 1}, 10 * (r + 1)) for r in range(9)], False),
    "others worked, and no more": (
        [([0], {1: 1}, 10), ([3], {1: 1}, 10), ([4], {1: 1}, 10), ([5], {1: 1}, 10)],
        True,
    ),
    "examples come between": (
        [([0], {}, 0), ([1], {}, 0), ([2], {}, 10), ([3], {}, 10), ([4], {}, 10)],
        False,
    ),
    "all at once, while examples had come": ([([0, 1, 2], {}, 10), ([], {}, 10)], False),
}


LONG_ENOUGH = 8
"""Turns in which a replica that died is replaced, however long that waits."""

NOTHING_DONE = ("three at once", "three in a row", "two and a later one")


@pytest.mark.parametrize(
    ("deaths", "ends", "held"),
    [
        *(pytest.param(*case, 0, id=name) for name, case in BARREN.items()),
        # What it held may be to blame, and is set aside in the end; but not if nothing ever went.
        *(
            pytest.param(deaths, ends and name in NOTHING_DONE, 10, id=f"{name}, over items")
            for name, (deaths, ends) in BARREN.items()
        ),
    ],
)
def test_barren_deaths(deaths: Deaths, ends: bool, held: int, make_run: MakeRun) -> None:
    causes = iter(errors(99))
    raised: list[RunError] = []
    turns = []
    for who, items, applied in deaths:
        raised += [next(causes) for _ in who]
        dead = [end(r, e) for r, e in zip(who, raised[-len(who) :] if who else [], strict=True)]
        told = report(items, examples_applied=applied)
        turns += [Turn(dead, told), *LONG_ENOUGH * [Turn(report=told)]]
    n_dead = len(raised)
    survivors = {*range(N_REPLICAS + n_dead)} - {r for who, *_ in deaths for r in who}
    run = make_run(*turns, FINISHED, drain=[[end(r, None) for r in survivors]], held=held)
    if ends:
        with pytest.raises(RunError) as caught:
            run.go()
        assert caught.value is raised[-1]
        assert run.summary()["status"] == "failed"
        at_last = len(deaths[-1][0])
        assert len(run.world.started) == N_REPLICAS + n_dead - at_last
    else:
        assert run.go()["status"] == "finished"
        assert len(run.world.started) == N_REPLICAS + n_dead
    assert len(run.world.lost) == n_dead


def test_the_next_of_those_that_die_in_vain_waits_longer(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(0)]),
        *LONG_ENOUGH * [Turn()],
        Turn([end(3)]),
        *LONG_ENOUGH * [Turn()],
        FINISHED,
        drain=[[end(r, None) for r in (1, 2, 4)]],
        held=0,
    )
    run.go()
    second_at = 1000.25 + LONG_ENOUGH * WAIT_S + WAIT_S
    assert run.world.started == [0, 1, 2, 3, 4]
    assert run.world.started_at[3:] == [1000.25 + FIRST_WAIT_S, second_at + 2 * FIRST_WAIT_S]


def test_those_that_are_dismissed_do_not_die_in_vain(make_run: MakeRun) -> None:
    """What is refused again and again is set aside, and too much of it ends the run."""
    turns = [Turn([end(r, DismissedError("3 gradients in a row"))]) for r in range(9)]
    run = make_run(*turns, FINISHED, drain=[[end(r, None) for r in (9, 10, 11)]], held=0)
    assert run.go()["status"] == "finished"
    assert run.world.started == list(range(12))


@pytest.mark.parametrize("applied", [0, 10])
def test_a_bug_ends_a_run_that_has_done_nothing(applied: int, make_run: MakeRun) -> None:
    bug = UnexpectedError("ValueError: a bug")
    run = make_run(
        Turn([end(1, bug)], report({1: 1}, examples_applied=applied)),
        FINISHED,
        drain=[[end(r, None) for r in (0, 2, 3)]],
    )
    if applied:
        assert run.go()["status"] == "finished"
        assert run.world.started == [0, 1, 2, 3]
    else:
        with pytest.raises(UnexpectedError) as caught:
            run.go()
        assert caught.value is bug


@pytest.mark.parametrize(
    "error",
    [
        UsageError("something to mend"),
        ConfigError("device", "host a has no CUDA device"),
        ShardRefusedError(1, "layout", "another model"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_other_replica_could_do_better_ends_the_run(
    error: DistBeliefError, make_run: MakeRun
) -> None:
    run = make_run(Turn([end(1, error)], report({1: 5}, examples_applied=50)))
    with pytest.raises(type(error)) as caught:
        run.go()
    assert caught.value is error
    assert (run.world.started, run.world.lost) == ([0, 1, 2], [(1, str(error))])
    assert (run.summary()["status"], run.summary()["examples_applied"]) == ("failed", 50)


# Recoveries


def test_a_recovery_ends_with_the_replacements_first_item(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(1)], report({1: 4, 0: 2})),
        Turn(report=report({0: 3, 3: 0})),  # it is there
        Turn(report=report({0: 4, 3: 0})),
        Turn(report=report({0: 4, 3: 1})),
        Turn(report=report({0: 5, 3: 2})),
        FINISHED,
        drain=[[end(0, None), end(2, None), end(3, None)]],
    )
    result = run.go()
    (recovery,) = result["recoveries"]
    assert recovery["seconds"] == 3 * WAIT_S
    assert run.world.told("replica_replaced") == [
        {
            "kind": "replica_replaced",
            "what": "replica 1",
            "cause": "it fell over",
            "seconds": 3 * WAIT_S,
            "items_leased_again": 11,
            "replica": 3,
        }
    ]


def test_a_replacement_that_dies_too_is_replaced_for_both(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(1)], report({0: 1, 1: 1})),
        Turn([end(3)], report({0: 2})),  # before its first item
        Turn(report=report({0: 3, 4: 0})),
        Turn(report=report({0: 4, 4: 1})),
        FINISHED,
        drain=[[end(0, None), end(2, None), end(4, None)]],
    )
    assert [r["seconds"] for r in run.go()["recoveries"]] == [3 * WAIT_S, 2 * WAIT_S]
    told = run.world.told("replica_replaced")
    assert [(event["what"], event["replica"]) for event in told] == [
        ("replica 1", 4),
        ("replica 3", 4),
    ]


def test_each_recovery_has_its_own_time(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(0)], report({0: 1})),
        Turn([end(1)], report({1: 1})),
        Turn(report=report({4: 1})),
        Turn(report=report({3: 1, 4: 9})),
        FINISHED,
        drain=[[end(2, None), end(3, None), end(4, None)]],
    )
    assert [r["seconds"] for r in run.go()["recoveries"]] == [3 * WAIT_S, WAIT_S]
    assert [event["replica"] for event in run.world.told("replica_replaced")] == [4, 3]


# Failures


def test_a_failure_of_the_report_ends_the_run(make_run: MakeRun) -> None:
    failed = report(failure="shard 0 did not answer", examples_applied=30)
    run = make_run(Turn(), Turn(report=failed))
    with pytest.raises(RunError, match=r"^shard 0 did not answer$") as caught:
        run.go()
    assert type(caught.value) is RunError
    assert (run.summary()["status"], run.summary()["examples_applied"]) == ("failed", 30)
    assert not run.world.stopped


LAST = report(examples_applied=70)
INTERRUPT = KeyboardInterrupt()
WAYS_OUT: list[tuple[list[Turn], dict[str, Any], BaseException, int | None]] = [
    # turns, world, error, examples of the summary's report
    ([Turn(SHARD_LOST)], {}, SHARD_LOST, None),
    ([Turn(report=SHARD_LOST)], {}, SHARD_LOST, None),
    ([Turn(INTERRUPT)], {}, INTERRUPT, None),
    ([], {"start_error": SHARD_LOST}, SHARD_LOST, None),
    ([Turn(report=LAST), Turn(SHARD_LOST)], {}, SHARD_LOST, 70),
    ([Turn(report=LAST), Turn(report=SHARD_LOST)], {}, SHARD_LOST, 70),
    ([Turn(report=LAST), Turn(INTERRUPT)], {}, INTERRUPT, 70),
    ([Turn(report=LAST, stop=True)], {"drain": [SHARD_LOST]}, SHARD_LOST, 70),
    ([Turn(report=LAST, stop=True)], {"drain": [INTERRUPT]}, INTERRUPT, 70),
    ([Turn(report=LAST, stop=True)], {"drain": IN_ORDER, "conclusion": SHARD_LOST}, SHARD_LOST, 70),
    ([Turn(report=LAST, stop=True)], {"drain": IN_ORDER, "conclusion": INTERRUPT}, INTERRUPT, 70),
    ([Turn(report=ZeroDivisionError("bug"))], {}, ZeroDivisionError("bug"), None),
]


@pytest.mark.parametrize(("turns", "world", "error", "examples"), WAYS_OUT)
def test_a_summary_is_written_on_every_way_out(
    turns: list[Turn],
    world: dict[str, Any],
    error: BaseException,
    examples: int | None,
    make_run: MakeRun,
) -> None:
    run = make_run(*turns, **{name: _copied(value) for name, value in world.items()})
    with pytest.raises(type(error)) as caught:
        run.go()
    assert str(caught.value) == str(error)
    status = "interrupted" if error is INTERRUPT else "failed"
    if examples is None:
        known = {"status": status, "examples_applied": 0, "recoveries": []}
        assert {name: run.summary()[name] for name in known} == known
    else:
        assert (run.summary()["status"], run.summary()["examples_applied"]) == (status, examples)
        assert run.summary()["wall_seconds"] == 12.35
    if error is INTERRUPT:
        assert "cause" not in run.summary()
        assert run.world.told("end") == [{"kind": "end", "status": "interrupted"}]
    else:
        assert run.world.told("end") == []
        assert run.summary()["cause"].startswith(str(as_distbelief_error(error)))
        assert [event["cause"] for event in run.world.told("failure")] == [run.summary()["cause"]]


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def test_a_failed_runs_summary_has_its_recoveries(make_run: MakeRun) -> None:
    run = make_run(Turn([end(2)]), Turn(report=SHARD_LOST))
    with pytest.raises(ProcessLostError):
        run.go()
    assert [r["what"] for r in run.summary()["recoveries"]] == ["replica 2"]


def test_recoveries_of_earlier_starts_stay_in_the_summary(
    make_run: MakeRun, tmp_path: Path
) -> None:
    earlier = {"what": "replica 0", "cause": "killed", "t": 1.0, "seconds": 2.0}
    before = Resumed(
        storage=LocalStorage(tmp_path),
        manifest=Manifest(
            number=0,
            even=True,
            examples_applied=0,
            layout="",
            n_parameters=0,
            elapsed_s=0.0,
            files=(),
        ),
        record={},
        summary={"status": "failed", "recoveries": [earlier]},
        incarnation=2,
        first_replica=0,
        epochs_told=0,
        elapsed_s=0.0,
        notes=(),
    )
    run = make_run(
        Turn([end(2)]),
        FINISHED,
        before=before,
        drain=[[end(r, None) for r in (0, 1, 3)]],
    )
    found = run.go()["recoveries"]
    assert found[0] == earlier
    assert [recovery["what"] for recovery in found] == ["replica 0", "replica 2"]
    assert before.summary["recoveries"] == [earlier]


def test_a_snapshot_that_fails_is_said_once(make_run: MakeRun) -> None:
    failed = {"number": 0, "failed": "no room"}
    snapshots = [{"number": 0}, failed, failed, {"number": 2}, {"number": 2, "failed": "no room"}]
    run = make_run(
        *(Turn(report=report(snapshot=snapshot)) for snapshot in snapshots),
        FINISHED,
        drain=IN_ORDER[:],
    )
    run.go()
    assert run.said[:-1] == 2 * ["a snapshot failed, and is tried again: no room"]


def test_a_summary_that_cannot_be_written_does_not_end_the_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [OSError(28, "No space left on device")]

    def write(storage: Storage, name: str, value: dict[str, Any]) -> None:
        if full:
            raise full.pop()
        write_json(storage, name, value)

    monkeypatch.setattr(module, "write_json", write)
    run = make_run(Turn(report=report(snapshot={"number": 0})), FINISHED, drain=IN_ORDER[:])
    assert run.go() == run.summary()
    assert full == []


def test_trouble_is_said_once(make_run: MakeRun) -> None:
    troubles = ["", "no room", "no room", "", "no room"]
    run = make_run(
        *(Turn(report=report(trouble=trouble)) for trouble in troubles),
        FINISHED,
        drain=IN_ORDER[:],
    )
    run.go()
    assert run.said[:-1] == 2 * ["the run goes on, but its records wait, make room: no room"]


# Without a coordinator, and with shards that come back


def test_a_death_that_no_coordinator_heard_is_told_by_the_next(make_run: MakeRun) -> None:
    killed = ProcessEnd(Post("coordinator", 0, 1), ProcessLostError("the coordinator", "killed"))
    up = ProcessUp(Post("coordinator", 0, 2), about={"node": "n", "host": "h", "pid": 7})
    run = make_run(
        Turn(report=report(dict.fromkeys(range(N_REPLICAS), 1), examples_applied=30)),
        Turn([killed], report=None),
        Turn([end(1)], report=None),
        Turn([up], report=None),
        Turn(report=report({0: 2, 3: 1}, examples_applied=30)),
        FINISHED,
        drain=[[end(r, None) for r in (0, 2, 3)]],
    )
    result = run.go()
    assert run.world.lost == [(1, "it fell over")]
    assert run.said[1] == (
        "replica 1 was lost (it fell over); its items go to others, another takes its place"
    )
    kinds = [event["kind"] for event in run.world.events]
    assert kinds == [
        "coordinator_lost",
        *("coordinator_started", "recovered", "replica_replaced", "end"),
    ]
    (spec,) = run.world.coordinators
    assert (spec.start, spec.replicas, spec.lost) == (2, {0, 1, 2}, frozenset())
    found = {r["what"]: (r["items_leased_again"], r["seconds"]) for r in result["recoveries"]}
    assert found == {"replica 1": (None, 2 * WAIT_S), "the coordinator": (None, 2 * WAIT_S)}


def test_what_a_shard_forgot_at_the_very_end_is_done_again(make_run: MakeRun) -> None:
    forgot = report(examples_applied=900)
    run = make_run(
        FINISHED,
        Turn(IN_ORDER[0], forgot),
        Turn(report=forgot),
        Turn(report=report(finished=True)),
        drain=[[end(r, None) for r in (3, 4, 5)]],
    )
    assert run.go()["status"] == "finished"
    assert run.world.started == [0, 1, 2, 3, 4, 5]
    assert run.said[0] == "a shard has forgotten some of the last items: they are done again"
    assert run.world.calls.count("conclude model.safetensors") == 1


def test_at_the_end_the_newest_shards_must_have_been_looked_at(make_run: MakeRun) -> None:
    """What was finished by the account of one that has died may have been forgotten."""
    died = ProcessEnd(Post("shard", 1, 1), SHARD_LOST)
    up = ProcessUp(Post("shard", 1, 2), replace(SERVING.shards[1], incarnation=2, address="a:3"))
    forgot = report(examples_applied=900, shards=standing(1, 2))
    whole = report(finished=True, shards=standing(1, 2))
    run = make_run(
        FINISHED,
        Turn([*IN_ORDER[0], died], report(finished=True)),
        Turn([], report(finished=True)),
        Turn([up], report(finished=True)),
        Turn([], report(finished=True)),
        Turn([], forgot),
        Turn([], forgot),
        Turn([end(r, None) for r in (3, 4, 5)], whole),
        Turn([], whole),
        conclusion=whole,
    )
    snapshot(run.supervisor._prepared)
    assert run.go()["status"] == "finished"
    assert run.world.started == [0, 1, 2, 3, 4, 5]
    assert run.world.calls.count("conclude model.safetensors") == 1


def test_replicas_that_are_at_it_already_are_not_started_twice(make_run: MakeRun) -> None:
    """There is room for so many replicas only; one waits for its start, another goes on."""
    forgot = report(examples_applied=900)
    busy = round(DRAIN_S / WAIT_S)
    run = make_run(
        Turn([end(1)], report(examples_applied=0)),  # in vain: its successor waits a moment
        Turn([end(2, None)], report(finished=True)),
        *busy * [Turn(report=forgot)],
        *LONG_ENOUGH * [Turn(report=forgot)],
        FINISHED,
        drain=[[end(r, None) for r in (0, 3, 4)]],
        held=0,
    )
    assert run.go()["status"] == "finished"
    assert run.world.started == [0, 1, 2, 3, 4]
    assert run.world.told("not_drained") == []


def test_a_shard_that_dies_while_the_run_is_concluded_ends_it(make_run: MakeRun) -> None:
    run = make_run(FINISHED, drain=IN_ORDER[:])
    died = ProcessEnd(Post("shard", 1, 1), SHARD_LOST)
    up = ProcessUp(Post("shard", 1, 2), replace(SERVING.shards[1], incarnation=2, address="a:3"))
    run.world.concluding = [[died], [], [up]]
    snapshot(run.supervisor._prepared)
    with pytest.raises(ProcessLostError, match=r"while the run was being concluded.*--resume"):
        run.go()
    assert [spec.incarnation for spec in run.world.shards] == [2]
    assert run.summary()["status"] == "failed"


def snapshot(prepared: Prepared) -> None:
    """A first one, of all shards."""
    files = []
    for e in SERVING.shards:
        content = bytes(4 * (e.end - e.begin))
        prepared.storage.write(f"snapshots/000000/shard-{e.shard}", content)
        state = ShardState(
            shard=e.shard,
            incarnation=1,
            begin=e.begin,
            end=e.end,
            loaded=True,
            clock=0,
            examples=0,
            skipped=0,
            applied=(),
            set_aside={},
            repeated=0,
        )
        files.append(
            ShardFile(
                name=f"shard-{e.shard}",
                nbytes=len(content),
                sha256=digest(content),
                n_shards=N_SHARDS,
                state=state,
            )
        )
    manifest = Manifest(
        number=0,
        even=True,
        examples_applied=0,
        layout=prepared.layout.fingerprint,
        n_parameters=prepared.layout.size,
        elapsed_s=0.0,
        files=tuple(files),
    )
    write_json(prepared.storage, "snapshots/000000/manifest.json", manifest.to_dict())


# Stop


def test_stop_ends_in_order(make_run: MakeRun) -> None:
    run = make_run(
        Turn(), Turn(stop=True), drain=[[], [end(1, None)], [end(0, None), end(2, None)]]
    )
    result = run.go()
    assert run.summary() == result
    assert (result["status"], result["examples_applied"]) == ("interrupted", 990)
    waits = 5 * ["wait"]
    assert [c for c in run.world.calls if c == "wait"] == waits
    assert run.world.calls[2:] == [
        # A coordinator that takes the place of another must hear it too.
        *("stop", "wait", "stop", "wait", "stop", "wait"),
        *("conclude model.safetensors", "emit end"),
    ]
    assert run.world.events == [{"kind": "end", "status": "interrupted"}]
    assert run.said[0].startswith("stopping: each replica finishes its item")


def test_a_stop_before_the_start_starts_nobody(make_run: MakeRun) -> None:
    run = make_run(Turn())
    run.stop.event.set()
    assert run.go()["status"] == "interrupted"
    assert run.world.started == []
    assert run.world.calls == ["wait", "stop", "wait", "conclude model.safetensors", "emit end"]


def test_a_run_that_is_finished_when_it_is_stopped_is_finished(make_run: MakeRun) -> None:
    run = make_run(Turn(report=report(finished=True), stop=True), drain=IN_ORDER[:])
    assert run.go()["status"] == "finished"


@pytest.mark.parametrize("error", [LOST, ConfigError("device", "none")])
def test_errors_while_draining_are_told(error: DistBeliefError, make_run: MakeRun) -> None:
    run = make_run(Turn(stop=True), drain=[[end(0, None), end(1, error)], [end(2, SHARD_LOST)]])
    assert run.go()["status"] == "interrupted"
    assert run.world.lost == [(1, str(error)), (2, str(SHARD_LOST))]
    assert run.world.started == [0, 1, 2]  # nobody takes their place


def test_replicas_that_do_not_end_are_told_and_not_waited_for(make_run: MakeRun) -> None:
    run = make_run(Turn(stop=True), drain=[[end(1, None)]])
    began = run.world.now
    assert run.go()["status"] == "interrupted"
    assert run.world.told("not_drained") == [{"kind": "not_drained", "replicas": [0, 2]}]
    assert WAIT_S + DRAIN_S <= run.world.now - began <= 3 * WAIT_S + DRAIN_S
    assert run.world.calls[-3:] == ["emit not_drained", "conclude model.safetensors", "emit end"]
