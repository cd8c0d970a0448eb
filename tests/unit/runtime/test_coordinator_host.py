"""The coordinator's process, with shards in memory that say what they are told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.errors import ProcessLostError, RunError, TransportError
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.runtime import coordinator_host as module
from distbelief.runtime.coordinator_host import CoordinatorHost, Throughput
from distbelief.types import (
    ItemOutcome,
    Push,
    PushReply,
    Refusal,
    ReplicaReport,
    ShardState,
    Version,
    Weights,
)

DEADLINE_S = 20.0
AWAY = TransportError(0, "UNAVAILABLE", "away")
LOST = ProcessLostError("shard 0", "killed")


def until(condition: Callable[[], object]) -> None:
    """Asks again and again until it holds."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


@dataclass
class FakeShard:
    """Has applied the items below ``below``, but for those set aside.

    Each call of ``state`` or ``set_aside`` takes its next answer first, which may be an error.
    """

    index: int = 0
    below: int = 0
    skipped: int = 0
    aside: dict[int, str] = field(default_factory=dict)
    answers: list[BaseException | None] = field(default_factory=list)
    aside_answers: list[BaseException | None] = field(default_factory=list)
    always: BaseException | None = None
    on_poll: Callable[[], object] = lambda: None
    polls: int = 0
    told: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    polled_by: str = ""

    def state(self) -> ShardState:
        self.polls += 1
        self.polled_by = threading.current_thread().name
        self.on_poll()
        answer = self.answers.pop(0) if self.answers else self.always
        if answer is not None:
            raise answer
        below, aside = self.below, dict(self.aside)
        applied, begin = [], 0
        for item in [*sorted(i for i in aside if i < below), below]:
            if begin < item:
                applied.append((begin, item))
            begin = item + 1
        return ShardState(
            shard=self.index,
            incarnation=1,
            begin=self.index,
            end=self.index + 1,
            loaded=True,
            clock=sum(end - begin for begin, end in applied),
            examples=0,
            skipped=self.skipped,
            applied=tuple(applied),
            set_aside=aside,
            repeated=0,
            staleness={0: below},
        )

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        self.told.append((items, reason))
        answer = self.aside_answers.pop(0) if self.aside_answers else None
        if answer is not None:
            raise answer
        self.aside = {**self.aside, **dict.fromkeys(items, reason)}

    def load(self, values: torch.Tensor) -> None:
        raise NotImplementedError

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        raise NotImplementedError

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        raise NotImplementedError


class Evaluations:
    """Counts the evaluations; each takes its next answer, and waits while it is held."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any] | BaseException | None] = []
        self.n = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> dict[str, Any] | None:
        self.n += 1
        answer = self.answers.pop(0) if self.answers else {"top1": self.n / 10, "seconds": 1.5}
        assert self.gate.wait(DEADLINE_S)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@dataclass
class Hosted:
    """A host, what it has to do with, and what it has written."""

    host: CoordinatorHost
    shards: list[FakeShard]
    evaluations: Evaluations
    run_dir: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = read_events(self.run_dir / "events.jsonl")
        return [event for event in found if event["kind"] == kind]

    def told(self, kind: str, name: str = "epoch") -> list[Any]:
        return [event[name] for event in self.events(kind)]

    def let_it_poll(self, times: int = 5) -> None:
        """Returns when every shard has been asked so many times more, and it was acted upon."""
        targets = [shard.polls + times for shard in self.shards]
        until(lambda: all(s.polls > t for s, t in zip(self.shards, targets, strict=True)))


Host = Callable[..., Hosted]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Starts hosts; each epoch has 45 examples in five items. All end with the test."""
    monkeypatch.setattr(module, "POLL_S", 0.002)
    with ExitStack() as stack:

        def make(
            n_shards: int = 1,
            *,
            n_items: int = 30,
            patience_s: float = 60.0,
            entered: bool = True,
            **changes: Any,
        ) -> Hosted:
            plan = ItemPlan(n_examples=45, batch_size=10, n_push=1, n_items=n_items)
            shards = [FakeShard(i, **changes) for i in range(n_shards)]
            evaluations = Evaluations()
            host = CoordinatorHost(
                Schedule(ScheduleConfig(lr=0.5), plan),
                shards,
                evaluations,
                lease_s=20.0,
                patience_s=patience_s,
                started_at=time.time(),
                run_dir=tmp_path,
            )
            if entered:
                stack.enter_context(host)
                stack.callback(evaluations.gate.set)
            return Hosted(host, shards, evaluations, tmp_path)

        yield make


def report(replica: int = 0, *outcomes: ItemOutcome, **fields: Any) -> ReplicaReport:
    return ReplicaReport(replica=replica, host="h", pid=7, outcomes=outcomes, **fields)


def done(item: int, **fields: Any) -> ItemOutcome:
    return ItemOutcome(**{"item": item, "examples": 10, "losses": {}, **fields})


def poison(h: Hosted, item: int = 0) -> None:
    """An item is refused as poison until it is to be set aside."""
    h.host.report(report())
    for _ in range(3):
        h.host.report(report(0, done(item, refusal=Refusal.NORM, pushed=False)))


def threads() -> set[str]:
    return {t.name for t in threading.enumerate()} & {"coordinator", "evaluation"}


# Epochs and their evaluations


def test_epochs_are_noted_and_evaluated(start: Host) -> None:
    h = start(n_shards=2)
    assert h.host.run_report().validation is None
    for epoch in (1, 2):
        for shard in h.shards:
            shard.below = 5 * epoch
        until(lambda: len(h.events("evaluation")) == epoch)  # noqa: B023
    assert h.told("epoch") == h.told("evaluation") == [1, 2]
    assert [(e["top1"], e["seconds"]) for e in h.events("evaluation")] == [(0.1, 1.5), (0.2, 1.5)]
    found = h.host.run_report()
    assert found.validation == {"top1": 0.2}
    assert (found.epoch, found.n_epochs, found.failure) == (3, 6, "")
    assert (found.examples_applied, found.total_examples) == (90, 270)


def test_an_epoch_is_done_when_every_shard_has_it(start: Host) -> None:
    h = start(n_shards=2)
    h.shards[0].below, h.shards[1].below = 10, 4
    h.let_it_poll()
    assert h.events("epoch") == []
    h.shards[1].below = 5
    until(lambda: h.events("evaluation"))
    assert h.told("epoch") == [1]


def test_an_evaluation_that_raises_is_an_event_and_does_not_end_the_run(start: Host) -> None:
    h = start()
    h.evaluations.answers = [ValueError("a bug"), AWAY, {"top1": 0.5}]
    for epoch in (1, 2, 3):
        h.shards[0].below = 5 * epoch
        until(lambda: h.evaluations.n == epoch)  # noqa: B023
    until(lambda: h.events("evaluation"))
    assert [(e["epoch"], e["cause"]) for e in h.events("evaluation_failed")] == [
        (1, "ValueError('a bug')"),
        (2, str(AWAY)),
    ]
    assert h.told("evaluation") == [3]
    assert h.host.run_report().failure == ""
    assert threads() == {"coordinator", "evaluation"}


def test_without_validation_images_nothing_is_told(start: Host) -> None:
    h = start()
    h.evaluations.answers = [None, None]
    h.shards[0].below = 10
    until(lambda: h.evaluations.n == 2)
    h.host.conclude(lambda: None)
    assert h.told("evaluation") == [2]  # that of conclude, which had an answer


def test_a_third_waiting_evaluation_is_left_out(start: Host) -> None:
    h = start()
    h.evaluations.gate.clear()
    h.shards[0].below = 5
    until(lambda: h.evaluations.n == 1)
    h.shards[0].below = 25
    until(lambda: len(h.events("epoch")) == 5)
    until(lambda: len(h.events("evaluation_left_out")) == 2)
    assert h.told("evaluation_left_out") == [4, 5]
    h.evaluations.gate.set()
    until(lambda: len(h.events("evaluation")) == 3)
    assert h.told("evaluation") == [1, 2, 3]


def test_the_last_epoch_is_left_to_the_conclusion(start: Host) -> None:
    h = start(n_items=10)
    h.shards[0].below = 10
    until(lambda: h.events("evaluation"))
    h.let_it_poll()
    assert (h.told("epoch"), h.told("evaluation")) == ([1, 2], [1])
    h.host.conclude(lambda: None)
    assert h.told("evaluation") == [1, 2]


# Setting aside


def test_setting_aside_is_tried_again_until_every_shard_has_been_told(start: Host) -> None:
    h = start(n_shards=3)
    first, second, third = h.shards
    second.aside_answers = [AWAY, None]
    third.aside_answers = [AWAY, AWAY]
    poison(h)
    until(lambda: h.events("set_aside"))
    told = ((0,), "norm, 3 times")
    assert [shard.told for shard in h.shards] == [4 * [told], 4 * [told], 3 * [told]]
    assert all(shard.aside == {0: "norm, 3 times"} for shard in h.shards)
    h.let_it_poll()
    assert [(e["item"], e["reason"]) for e in h.events("set_aside")] == [(0, "norm, 3 times")]
    assert len(first.told) == 4  # and not again
    found = h.host.run_report()
    assert (found.failure, found.examples_set_aside) == ("", 10)


def test_a_shard_that_is_never_told_fails_the_run(start: Host) -> None:
    h = start(n_shards=2, patience_s=0.05)
    h.shards[1].aside_answers = 1_000_000 * [AWAY]
    poison(h)
    until(lambda: h.host.run_report().failure)
    assert h.host.run_report().failure == str(AWAY)
    assert h.events("set_aside") == []


@pytest.mark.parametrize(("n_skipped", "fails"), [(0, False), (10, False), (11, True)])
def test_too_many_unreadable_images_fail_the_run(n_skipped: int, fails: bool, start: Host) -> None:
    h = start(n_items=100)
    h.shards[0].skipped = n_skipped
    if fails:
        until(lambda: h.events("failure"))
        assert "images could not be read: look at the folder of --data" in (
            h.host.run_report().failure
        )
    else:
        h.let_it_poll()
        assert h.host.run_report().failure == ""


@pytest.mark.parametrize(
    ("n_items", "n_aside", "fails"),
    [
        (5, 3, False),
        (5, 4, True),
        (20, 3, False),
        (20, 4, True),
        (400, 4, False),
        (400, 5, True),
        (450, 4, False),
        (450, 5, True),  # 1% of 450 is 4.5
        (1000, 10, False),
        (1000, 11, True),
    ],
)
def test_too_many_items_set_aside_fail_the_run(
    n_items: int, n_aside: int, fails: bool, start: Host
) -> None:
    h = start(n_items=n_items, aside=dict.fromkeys(range(1, n_aside + 1), "not_finite, 3 times"))
    if fails:
        until(lambda: h.events("failure"))
        text = (
            f"{n_aside} of {n_items} items had to be set aside: the training has diverged; lower "
            f"--lr, or set --clip-norm"
        )
        assert h.host.run_report().failure == text
        assert h.told("failure", "cause") == [text]
    else:
        h.let_it_poll()
        assert h.host.run_report().failure == ""


# Shards that are away


class Clock:
    """Time that passes by polls alone, one second each."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_(self) -> None:
        self.now += 1.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


@pytest.mark.parametrize(
    ("answers", "polls"),
    [
        # From the last answer on, 3.5 seconds are borne.
        (4 * [AWAY], 4),
        ([None, *4 * [AWAY]], 5),
        ([*3 * [AWAY], None, *4 * [AWAY]], 8),
        ([*3 * [AWAY], None, *3 * [AWAY], None, *3 * [AWAY]], None),
        ([*3 * [AWAY], LOST], 4),
        ([LOST], 1),
        ([None, None, LOST], 3),
        ([ZeroDivisionError("a bug")], 1),
        ([RunError("of another kind")], 1),
    ],
)
def test_how_long_a_shard_that_is_away_is_borne(
    answers: list[BaseException | None],
    polls: int | None,
    start: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    h = start(patience_s=3.5, answers=list(answers), on_poll=clock.pass_)
    if polls is None:
        until(lambda: h.shards[0].polls > len(answers) + 5)
        assert h.host.run_report().failure == ""
        return
    until(lambda: h.host.run_report().failure)
    cause = answers[-1]
    expected = repr(cause) if isinstance(cause, ZeroDivisionError) else str(cause)
    assert h.host.run_report().failure == expected
    until(lambda: "coordinator" not in threads())
    assert h.told("failure", "cause") == [expected]
    assert h.shards[0].polls == polls


def test_a_shard_that_stays_away_fails_the_run(start: Host) -> None:
    h = start(patience_s=0.05, always=AWAY)
    until(lambda: h.host.run_report().failure)
    assert h.host.run_report().failure == str(AWAY)


def test_a_shard_that_comes_back_is_followed(start: Host) -> None:
    h = start(answers=[AWAY, None, AWAY, AWAY])
    h.shards[0].below = 5
    until(lambda: h.events("epoch"))
    assert h.host.run_report().failure == ""


# The end


def test_the_model_is_written_before_it_is_evaluated(start: Host) -> None:
    h = start(n_items=10, skipped=3)
    h.shards[0].below = 10
    until(lambda: h.events("evaluation"))
    evaluated: list[int] = []
    found = h.host.conclude(lambda: evaluated.append(h.evaluations.n))
    assert (evaluated, h.evaluations.n) == ([1], 2)
    assert (found.finished, found.examples_applied, found.examples_skipped) == (True, 90, 3)
    assert (found.epoch, found.n_epochs) == (2, 2)
    assert found.validation == {"top1": 0.2}
    assert h.events("progress")[-1]["examples_applied"] == 90


def test_the_conclusion_looks_at_the_shards_once_more(start: Host) -> None:
    h = start(n_items=5, answers=[LOST])
    until(lambda: h.host.run_report().failure)  # nobody follows them any more
    h.shards[0].below = 5
    assert h.host.conclude(lambda: None).examples_applied == 45
    assert h.shards[0].polled_by == threading.current_thread().name
    assert (h.told("epoch"), h.told("evaluation")) == ([1], [1])


def test_a_last_evaluation_that_raises_leaves_the_model_and_the_report(start: Host) -> None:
    h = start(n_items=5, below=5)
    h.evaluations.answers = [MemoryError("no room")]
    written: list[bool] = []
    assert h.host.conclude(lambda: written.append(True)).finished
    assert written == [True]
    assert [(e["epoch"], e["cause"]) for e in h.events("evaluation_failed")] == [
        (1, "MemoryError('no room')")
    ]


def test_a_model_that_cannot_be_written_is_an_error(start: Host) -> None:
    h = start(n_items=5, below=5)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        h.host.conclude(full)
    assert h.evaluations.n == 0


def test_outcomes_of_the_last_moment_are_recorded(start: Host) -> None:
    h = start(entered=False)
    with h.host:
        h.host.report(report())
        h.host.report(report(0, done(0, losses={"loss": 2.0}), done(1, refusal=Refusal.STALE)))
    (items,) = h.events("items")
    assert (items["items"], items["replicas"], items["losses"]) == ([0], [0], {"loss": [2.0]})
    (refused,) = h.events("refused")
    assert (refused["replica"], refused["item"], refused["reason"]) == (0, 1, "stale")


def exit_in_time(h: Hosted, release: bool = False) -> None:
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(h.host.__exit__, None, None, None)
        if release:
            until(h.host._closing.is_set)
            h.evaluations.gate.set()
        leaving.result(DEADLINE_S)
    assert threads() == set()


def test_the_exit_waits_for_the_evaluation_at_hand_and_leaves_out_those_that_wait(
    start: Host,
) -> None:
    h = start(entered=False)
    h.evaluations.gate.clear()
    h.host.__enter__()
    h.shards[0].below = 5
    until(lambda: h.evaluations.n == 1)
    h.shards[0].below = 25
    until(lambda: len(h.events("evaluation_left_out")) == 2)  # the queue is full
    exit_in_time(h, release=True)
    assert h.evaluations.n == 1
    assert h.told("evaluation") == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_exit_does_not_hang_when_the_evaluation_thread_has_gone(start: Host) -> None:
    h = start(entered=False)
    h.evaluations.answers = [SystemExit()]  # ends the thread, and is no Exception
    h.host.__enter__()
    h.shards[0].below = 5
    until(lambda: h.evaluations.n == 1 and "evaluation" not in threads())
    h.shards[0].below = 25
    until(lambda: h.events("evaluation_left_out"))
    exit_in_time(h)


@pytest.mark.parametrize("answer", [None, LOST])
def test_the_exit_does_not_hang_whatever_became_of_the_shards(
    answer: BaseException | None, start: Host
) -> None:
    h = start(entered=False, always=answer)
    h.host.__enter__()
    until(lambda: h.shards[0].polls)
    exit_in_time(h)


def test_the_exit_after_the_conclusion_has_nothing_to_wait_for(start: Host) -> None:
    h = start(entered=False)
    h.host.__enter__()
    h.host.conclude(lambda: None)
    assert threads() == set()
    exit_in_time(h)


# What is told


def test_a_replica_joins_once_and_its_loss_is_told(start: Host) -> None:
    h = start()
    orders = h.host.report(report(4))
    h.host.report(report(4))
    held = [item.number for item in orders.items]
    assert h.host.replica_lost(4, "killed") == len(held) == 2
    (joined,) = h.events("replica_joined")
    assert (joined["replica"], joined["host"], joined["pid"]) == (4, "h", 7)
    (lost,) = h.events("replica_lost")
    assert (lost["replica"], lost["cause"], lost["items_returned"]) == (4, "killed", held)


def test_stop_orders_everybody_to_end(start: Host) -> None:
    h = start()
    assert not h.host.report(report()).stop
    h.host.stop()
    assert h.host.report(report()).stop


def test_the_report_has_the_replicas_and_the_share_of_time_that_they_waited(start: Host) -> None:
    h = start()
    h.host.report(report(0, seconds_per_item=2.0, waiting_s=1.0))
    assert h.host.run_report().mean_waiting == 0.0  # no item yet
    h.host.report(report(0, done(0), done(1), seconds_per_item=2.0, waiting_s=0.5))
    h.host.report(report(1, done(2), seconds_per_item=4.0))
    found = h.host.run_report()
    assert found.mean_waiting == 1.5 / (2 * 2.0 + 4.0)
    assert found.replicas[0] == {
        "replica": 0,
        "host": "h",
        "pid": 7,
        "items": 2,
        "examples": 20,
        "seconds_per_item": 2.0,
    }
    assert [r["items"] for r in found.replicas] == [2, 1]


def test_progress_is_told_every_so_often(start: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRESS_EVENT_S", 0.0)
    h = start(below=3)
    h.host.report(report(0, done(0, losses={"loss": 1.234567})))
    until(lambda: h.events("progress"))
    until(lambda: h.events("progress")[-1]["losses"])
    last = h.events("progress")[-1]
    assert (last["examples_applied"], last["losses"]) == (30, {"loss": 1.23457})
    assert (last["learning_rate"], last["replicas"]) == (0.5, [0])


def test_the_seconds_left_are_those_of_the_examples_left(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = start(n_items=10)
    assert h.host.run_report().left_s is None
    h.shards[0].below, h.shards[0].aside = 2, {9: "norm, 3 times"}
    until(lambda: h.host.run_report().examples_set_aside)
    monkeypatch.setattr(h.host._throughput, "now", lambda: 4.0)
    found = h.host.run_report()
    assert (found.total_examples, found.examples_applied, found.examples_set_aside) == (90, 20, 5)
    assert (found.left_s, found.images_per_second) == ((90 - 20 - 5) / 4.0, 4.0)


# Throughput


@pytest.mark.parametrize(
    ("points", "now", "mean"),
    [
        ([], 0.0, 0.0),
        ([(0, 0)], 0.0, 0.0),
        ([(1, 100)], 0.0, 0.0),
        ([(0, 0), (1, 0), (2, 0)], 0.0, 0.0),
        # What passes before the first example counts in neither.
        ([(0, 0), (10, 100), (20, 300)], 20.0, 20.0),
        ([(0, 0), (90, 0), (100, 100), (104, 300)], 50.0, 50.0),
        # Time in which nothing came lowers the present, and not the mean.
        ([(10, 100), (14, 300), (20, 300)], 20.0, 50.0),
        ([(10, 100), (20, 300), (40, 300)], 0.0, 20.0),
        # The present is that of the last 20 seconds.
        ([(0, 0), (10, 100), (20, 200), (30, 300), (40, 900)], 35.0, 80 / 3),
        # Of two points that are far apart both are kept.
        ([(10, 100), (100, 1000)], 10.0, 10.0),
        # No time has passed.
        ([(10, 100), (10, 200)], 0.0, 0.0),
    ],
)
def test_throughput(points: list[tuple[float, int]], now: float, mean: float) -> None:
    throughput = Throughput()
    for seconds, examples in points:
        throughput.note(seconds, examples)
    assert throughput.now() == pytest.approx(now)
    assert throughput.mean() == pytest.approx(mean)


def test_throughput_keeps_no_more_than_its_window() -> None:
    throughput = Throughput()
    for second in range(1000):
        throughput.note(second, 7 * second)
    assert len(throughput._recent) == module.RATE_WINDOW_S + 1
    assert throughput.now() == throughput.mean() == 7.0
