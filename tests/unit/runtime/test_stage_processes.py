"""The processes of one replica's stages, which end in any case."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from distbelief.config import TrainConfig
from distbelief.errors import (
    ConfigError,
    DistBeliefError,
    ProcessLostError,
    ShardRefusedError,
    StageLostError,
    UnexpectedError,
)
from distbelief.replica.group import Meeting
from distbelief.runtime import stage_processes as module
from distbelief.runtime.endpoints import Access
from distbelief.runtime.seat import Seat
from distbelief.runtime.stage_processes import StageProcesses, StageTask, stage_main
from distbelief.serving import Serving
from distbelief.storage import LocalStorage
from distbelief.types import ItemOutcome, LeasedItem, Orders, ReplicaReport

ACCESS = Access(
    storage=LocalStorage(Path("/nowhere")),
    serving=Serving(number=1, run=1, shards=()),
    token="secret",
)
ITEM = LeasedItem(number=3, lease=9, epoch=0, begin=0, end=4, rate=0.1)


class Spec:
    """A run whose data cannot be opened, in whatever way."""

    config = TrainConfig()

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    def open(self) -> Any:
        return self._act()


def task(stage: int, act: Callable[[], Any]) -> StageTask:
    return StageTask(
        spec=Spec(act),  # type: ignore[arg-type]
        seat=Seat(replica=5, slot=1, stage=stage),
        access=ACCESS,
        n_threads=1,
        n_loaders=0,
    )


@dataclass
class Coordinator:
    """Answers reports with what it has."""

    answers: list[Orders | Exception] = field(default_factory=list)
    reports: list[ReplicaReport] = field(default_factory=list)

    def report(self, report: ReplicaReport) -> Orders:
        self.reports.append(report)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


# Real processes


def fails() -> None:
    raise ConfigError("classes", "a label is 3")


def has_a_bug() -> None:
    raise ValueError("not ours")


def loses_touch() -> None:
    raise StageLostError(5, 1, "no answer")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs() -> None:
    threading.Event().wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("acts", "cause", "text"),
    [
        ((hangs, fails), ConfigError, "--classes: a label is 3"),
        (
            (dies, loses_touch),
            ProcessLostError,
            "stage 0 of replica 5 was lost: its process ended with exit code -9",
        ),
        ((loses_touch, has_a_bug), UnexpectedError, "ValueError: not ours ("),
    ],
)
def test_the_first_cause_is_raised_and_all_processes_end(
    acts: tuple[Callable[[], None], ...],
    cause: type[DistBeliefError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "OTHERS_S", 0.2 if hangs in acts else 60.0)
    tasks = [task(stage, act) for stage, act in enumerate(acts)]
    with StageProcesses(tasks) as stages:
        pids = stages.pids
        assert len(set(pids)) == 2
        with pytest.raises(DistBeliefError) as caught:
            stages.run(Coordinator())
        if hangs in acts:
            assert alive(pids[0])
    assert type(caught.value) is cause
    assert str(caught.value).startswith(text)
    assert not any(alive(pid) for pid in pids)


# Without processes: what passes through the pipes


class Process:
    """Keeps what is done to it."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode
        self.calls: list[str] = []

    def join(self, timeout_s: float | None = None) -> None:
        self.calls.append("join")

    def kill(self) -> None:
        self.calls.append("kill")


@dataclass
class Pipes:
    """Stages whose other ends of the pipes are here."""

    stages: StageProcesses
    ends: list[Connection]

    def close(self) -> None:
        """Closes all other ends, and ours."""
        self.stages.close()
        for end in self.ends:
            end.close()


MakePipes = Callable[[int], Pipes]


@pytest.fixture
def pipes() -> Any:
    made: list[Pipes] = []

    def make(n_stages: int) -> Pipes:
        stages = StageProcesses([task(stage, hangs) for stage in range(n_stages)])
        ends = []
        for stage in range(n_stages):
            ours, theirs = Pipe()
            stages._connections.append(ours)
            stages._processes.append(Process(stage - 9))  # type: ignore[arg-type]
            ends.append(theirs)
        made.append(Pipes(stages, ends))
        return made[-1]

    yield make
    for each in made:
        each.close()


def report(**changes: Any) -> ReplicaReport:
    return ReplicaReport(**{"replica": 5, "host": "h", "pid": 1, "stages": 2, **changes})


def test_reports_go_to_the_coordinator_and_its_orders_back(
    pipes: MakePipes, in_threads: Callable[..., list[Any]]
) -> None:
    made = pipes(2)
    coordinator = Coordinator([Orders(items=(ITEM,)), Orders(stop=True)])
    outcome = ItemOutcome(item=3, examples=4, losses={"loss": 0.5}, unreadable=("a.jpg",))

    def first() -> list[Orders]:
        piped = module._PipedCoordinator(made.ends[0])
        answers = [piped.report(report()), piped.report(report(outcomes=(outcome,)))]
        made.ends[0].send(True)
        return answers

    def second() -> None:
        made.ends[1].send(True)

    answers, *_ = in_threads([first, second, lambda: made.stages.run(coordinator)])
    assert answers == [Orders(items=(ITEM,)), Orders(stop=True)]
    assert [r.outcomes for r in coordinator.reports] == [(), (outcome,)]


def test_an_error_of_the_coordinator_is_the_first_stages(
    pipes: MakePipes, in_threads: Callable[..., list[Any]]
) -> None:
    made = pipes(1)
    refused = ShardRefusedError(0, "rate", "another")

    def first() -> None:
        with pytest.raises(ShardRefusedError, match="another") as caught:
            module._PipedCoordinator(made.ends[0]).report(report())
        made.ends[0].send(caught.value)

    def run() -> DistBeliefError:
        with pytest.raises(ShardRefusedError) as caught:
            made.stages.run(Coordinator([refused]))
        return caught.value

    _, raised = in_threads([first, run])
    assert (raised.shard, raised.reason) == (0, "rate")


def test_all_stages_must_end_before_the_run_has(
    pipes: MakePipes, in_threads: Callable[..., list[Any]]
) -> None:
    made = pipes(3)
    ended = threading.Event()

    def stages() -> bool:
        made.ends[2].send(True)
        made.ends[0].send(True)
        before = ended.is_set()
        made.ends[1].send(True)
        return before

    def run() -> None:
        made.stages.run(Coordinator())
        ended.set()

    before, _ = in_threads([stages, run])
    assert not before


@pytest.mark.parametrize("at", [0, 1])
def test_a_process_that_ends_without_a_word_is_lost(at: int, pipes: MakePipes) -> None:
    made = pipes(2)
    made.ends[at].close()
    made.ends[1 - at].send(StageLostError(5, 1 - at, "no answer"))
    with pytest.raises(ProcessLostError) as caught:
        made.stages.run(Coordinator())
    assert (caught.value.what, caught.value.cause) == (
        f"stage {at} of replica 5",
        f"its process ended with exit code {at - 9}",
    )
    assert made.stages._processes[at].calls == ["join"]  # type: ignore[attr-defined]


def test_a_stage_that_dies_before_it_hears_the_answer_is_lost(pipes: MakePipes) -> None:
    made = pipes(1)
    made.ends[0].send(report())
    coordinator = Coordinator([Orders()])

    def died(report: ReplicaReport) -> Orders:
        made.ends[0].close()
        return Orders()

    coordinator.report = died  # type: ignore[method-assign]
    with pytest.raises(ProcessLostError, match="stage 0 of replica 5 was lost"):
        made.stages.run(coordinator)


def test_what_the_others_know_is_waited_for_but_not_for_ever(
    pipes: MakePipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OTHERS_S", 0.05)
    made = pipes(2)
    lost = StageLostError(5, 0, "no answer")
    made.ends[0].send(lost)
    with pytest.raises(StageLostError) as caught:
        made.stages.run(Coordinator())
    assert caught.value.args == lost.args


def test_a_stage_whose_parent_has_gone_says_so() -> None:
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(ProcessLostError, match="the coordinator was lost"):
        module._PipedCoordinator(theirs).report(report())
    theirs.close()


def test_stages_that_have_ended_may_end_what_they_have_started(
    pipes: MakePipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are killed at once, and these only if they do not come to their end."""
    monkeypatch.setattr(module, "OTHERS_S", 0.05)
    made = pipes(2)
    made.ends[1].send(UnexpectedError("a bug"))
    with pytest.raises(UnexpectedError):
        made.stages.run(Coordinator())
    made.stages.close()
    hung, ended = (process.calls for process in made.stages._processes)  # type: ignore[attr-defined]
    assert hung[0] == "kill"
    assert ended[0] == "join"
    assert "kill" in ended


@pytest.mark.parametrize("heard", [True, False])
def test_what_a_stage_did_is_told_if_there_is_anybody(
    heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "follow_parent", lambda: None)
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ours, theirs = Pipe()
    if not heard:
        ours.close()
    stage_main(theirs, cloudpickle.dumps(task(0, fails)), ("/a/path/of/the/parent",))
    assert "/a/path/of/the/parent" in sys.path
    sys.path.remove("/a/path/of/the/parent")
    if heard:
        said = ours.recv()
        assert isinstance(said, ConfigError)
        ours.close()
    theirs.close()


def test_each_stage_gets_the_same_meeting_and_shards_count_it_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def connect(access: Access, config: Any, stack: Any, *, sender: str) -> Any:
        asked.append((access, sender))
        return SimpleNamespace(ports=())

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "run_replica", lambda *args, **options: asked.append(options))
    module.run_stage(task(1, hangs), Coordinator())
    assert asked == [(ACCESS, "5.1"), {"n_loaders": 0}]

    started: list[StageTask] = []

    class Context:
        def Pipe(self) -> Any:  # noqa: N802
            return Pipe()

        def Process(self, *, target: Any, args: Any, name: str) -> Any:  # noqa: N802
            assert target is stage_main
            started.append(cloudpickle.loads(args[1]))
            assert name == f"replica-5-stage-{started[-1].seat.stage}"
            return Started()

    class Started:
        pid = 1

        def start(self) -> None: ...

        def kill(self) -> None: ...

        def join(self, timeout_s: float | None = None) -> None: ...

    monkeypatch.setattr(module, "LightContext", Context)
    with StageProcesses([task(stage, hangs) for stage in range(3)]):
        meetings = {one.seat.meeting for one in started}
        assert len(meetings) == 1
        assert isinstance(meetings.pop(), Meeting)
        assert [one.seat.stage for one in started] == [0, 1, 2]
