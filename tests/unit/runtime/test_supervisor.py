"""The supervisor, in a world that does as it is told and in which time passes by waiting alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    DistBeliefError,
    ProcessLostError,
    RunError,
    ShardRefusedError,
    UsageError,
    as_distbelief_error,
)
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.observe import view
from distbelief.observe.report import Report, progress_line
from distbelief.runtime import supervisor as module
from distbelief.runtime.folder import Probe
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.resume import Resumed
from distbelief.runtime.supervisor import DRAIN_S, WAIT_S, Stop, Supervisor, stop_on_signals
from distbelief.runtime.world import ReplicaEnd
from distbelief.storage import LocalStorage, Storage, write_json

N_REPLICAS, N_SHARDS = 3, 2
LOST = RunError("it fell over")
SHARD_LOST = ProcessLostError("shard 1", "killed")


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
        "shards": (),
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

    ends: Sequence[ReplicaEnd] | BaseException = ()
    report: Report | BaseException = field(default_factory=report)
    stop: bool = False


@dataclass
class FakeWorld:
    """Takes its turns in order until it is told to stop, then drains."""

    stop_: Stop
    turns: list[Turn]
    drain: list[Sequence[ReplicaEnd] | BaseException] = field(default_factory=list)
    conclusion: Report | BaseException = field(
        default_factory=lambda: report(examples_applied=990, finished=True)
    )
    now: float = 1000.0
    calls: list[str] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    lost: list[tuple[int, str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    running: set[int] = field(default_factory=set)
    present: Report | BaseException = field(default_factory=report)
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
        self.running.add(replica)

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        self.now += timeout_s
        self.calls.append("wait")
        if self.stopped:
            ends = self.drain.pop(0) if self.drain else ()
        else:
            turn = self.turns.pop(0)
            ends, self.present = turn.ends, turn.report
            if turn.stop:
                self.stop_.event.set()
        if isinstance(ends, BaseException):
            raise ends
        self.running -= {e.replica for e in ends}
        return list(ends)

    def report(self) -> Report:
        if isinstance(self.present, BaseException):
            raise self.present
        return self.present

    def replica_lost(self, replica: int, cause: str) -> int:
        self.lost.append((replica, cause))
        return 10 + replica

    def emit(self, kind: str, **fields: Any) -> None:
        self.calls.append(f"emit {kind}")
        self.events.append({"kind": kind, **fields})

    def stop(self) -> None:
        self.calls.append("stop")
        self.stopped = True

    def conclude(self, model_file: str) -> Report:
        self.calls.append(f"conclude {model_file}")
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
        clock = type("Clock", (), {"monotonic": staticmethod(lambda: fake.now)})
        for timed in (module, view):
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
            started_at=0.0,
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
        *("wait", "wait", "stop", "wait", "wait"),
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
        Turn([end(8)]),
        FINISHED,
        first_replica=7,
        drain=[[end(r, None) for r in (7, 9, 10)]],
    )
    run.go()
    assert run.world.started == [7, 8, 9, 10]


# Deaths


def test_the_dead_are_replaced_and_it_is_told(make_run: MakeRun) -> None:
    run = make_run(
        Turn([end(1), end(2, ProcessLostError("replica 2", "killed"))]),
        Turn([end(3)], report(examples_applied=10)),
        FINISHED,
        drain=[[end(0, None), end(4, None), end(5, None)]],
    )
    result = run.go()
    assert run.world.started == [0, 1, 2, 3, 4, 5]
    killed = "replica 2 was lost: killed"
    assert run.world.lost == [(1, str(LOST)), (2, killed), (3, str(LOST))]
    recoveries = [
        {"what": f"replica {replica}", "cause": cause, "t": 12.35, "seconds": None}
        | {"items_leased_again": 10 + replica}
        for replica, cause in run.world.lost
    ]
    assert result["recoveries"] == recoveries
    assert run.said[0] == (
        "replica 1 was lost (it fell over); 11 items go to others, replica 3 takes its place"
    )
    assert run.said[2].endswith("13 items go to others, replica 5 takes its place")


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


@pytest.mark.parametrize(("deaths", "ends"), BARREN.values(), ids=BARREN)
def test_barren_deaths(deaths: Deaths, ends: bool, make_run: MakeRun) -> None:
    causes = iter(errors(99))
    raised: list[RunError] = []
    turns = []
    for who, items, applied in deaths:
        raised += [next(causes) for _ in who]
        dead = [end(r, e) for r, e in zip(who, raised[-len(who) :] if who else [], strict=True)]
        turns.append(Turn(dead, report(items, examples_applied=applied)))
    n_dead = len(raised)
    survivors = {*range(N_REPLICAS + n_dead)} - {r for who, *_ in deaths for r in who}
    run = make_run(*turns, FINISHED, drain=[[end(r, None) for r in survivors]])
    if ends:
        with pytest.raises(RunError) as caught:
            run.go()
        assert caught.value is raised[-1]
        assert run.summary()["status"] == "failed"
        assert len(run.world.started) == N_REPLICAS + n_dead - 1
    else:
        assert run.go()["status"] == "finished"
        assert len(run.world.started) == N_REPLICAS + n_dead
    assert len(run.world.lost) == n_dead


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
        *("stop", "wait", "wait", "wait"),
        *("conclude model.safetensors", "emit end"),
    ]
    assert run.world.events == [{"kind": "end", "status": "interrupted"}]
    assert run.said[0].startswith("stopping: each replica finishes its item")


def test_a_stop_before_the_start_starts_nobody(make_run: MakeRun) -> None:
    run = make_run(Turn())
    run.stop.event.set()
    assert run.go()["status"] == "interrupted"
    assert run.world.started == []
    assert run.world.calls == ["wait", "stop", "conclude model.safetensors", "emit end"]


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
    assert run.world.now - began == WAIT_S + DRAIN_S
    assert run.world.calls[-3:] == ["emit not_drained", "conclude model.safetensors", "emit end"]


# Signals


def test_the_first_signal_asks_and_the_second_insists() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as stop:
        assert not stop.event.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.event.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail() -> None:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGINT) != before
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    def inside() -> tuple[object, bool]:
        with stop_on_signals() as stop:
            return signal.getsignal(signal.SIGINT), stop.event.is_set()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(inside).result(60)
    assert found == (signal.getsignal(signal.SIGINT), False)
