"""The reporter: what it tells, keeps, and is told."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pytest

from distbelief.data.loader import Batch, BatchRequest
from distbelief.errors import DismissedError, ProcessLostError
from distbelief.items import ItemPlan
from distbelief.replica import reporter as module
from distbelief.replica.feed import Feed
from distbelief.replica.reporter import Progress, Reporter
from distbelief.types import ItemOutcome, LeasedItem, Orders, ReplicaReport

ITEM = LeasedItem(0, 1, 0, 0, 2, 0.5)


def outcome(item: int) -> ItemOutcome:
    return ItemOutcome(item=item, examples=2, losses={})


def feed() -> Feed:
    plan = ItemPlan(n_examples=4, batch_size=2, n_push=1, n_items=4)

    def submit(request: BatchRequest) -> Future[Batch]:
        return Future()

    return Feed(plan, lambda epoch: np.arange(4), submit, batches_ahead=1)


@dataclass
class Coordinator:
    """Answers as it is told, the last answer again and again."""

    answers: list[Callable[[], Orders]]
    reports: list[ReplicaReport] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def report(self, report: ReplicaReport) -> Orders:
        self.reports.append(report)
        if len(self.reports) >= len(self.answers):
            self.enough.set()
        return self.answers[min(len(self.reports), len(self.answers)) - 1]()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.002)


def lost() -> Orders:
    raise ProcessLostError("the coordinator", "it was killed")


def test_what_a_failed_report_had_is_kept_in_order() -> None:
    progress, source = Progress(), feed()
    progress.add(outcome(0))
    progress.add(outcome(1))
    progress.note_wait(1.5)

    def fails_late() -> Orders:
        progress.add(outcome(2))  # meanwhile
        progress.note_wait(0.25)
        return lost()

    coordinator = Coordinator([fails_late])

    def work() -> None:
        with Reporter(coordinator, source, progress, 3) as reporter:
            assert source.next() is None  # the feed ends
            reporter.check()

    with pytest.raises(ProcessLostError, match="it was killed"):
        work()
    assert [o.item for o in coordinator.reports[0].outcomes] == [0, 1]
    assert progress.take() == ((outcome(0), outcome(1), outcome(2)), None, 1.75)


def test_what_a_report_has_told_is_not_told_again() -> None:
    progress, source = Progress(), feed()
    progress.add(outcome(0))
    coordinator = Coordinator([lambda: Orders(), lambda: Orders(stop=True)])
    with Reporter(coordinator, source, progress, 3):
        assert source.next() is None
    assert [len(report.outcomes) for report in coordinator.reports] == [1, 0, 0]
    assert [report.leaving for report in coordinator.reports] == [False, False, True]


def test_a_goodbye_that_fails_keeps_what_it_would_have_told() -> None:
    progress, source = Progress(), feed()
    coordinator = Coordinator([lambda: Orders(stop=True), lost])

    def leave() -> None:
        with Reporter(coordinator, source, progress, 3):
            assert source.next() is None
            progress.add(outcome(0))

    with pytest.raises(ProcessLostError):
        leave()
    assert coordinator.reports[-1].leaving
    assert progress.take()[0] == (outcome(0),)


def test_a_dismissal_fails_the_replica_without_a_goodbye() -> None:
    progress, source = Progress(), feed()
    why = "3 gradients in a row were refused (not_finite)"
    coordinator = Coordinator([lambda: Orders(items=(ITEM,)), lambda: Orders(dismissal=why)])
    ended = []

    def work() -> None:
        with Reporter(coordinator, source, progress, 3) as reporter:
            coordinator.enough.wait(60)
            reporter._thread.join(60)
            ended.append(source.next() is None)  # though an item waits
            reporter.check()

    with pytest.raises(
        DismissedError,
        match=r"^it was dismissed: 3 gradients in a row were refused \(not_finite\)$",
    ):
        work()
    assert ended == [True]
    assert [report.leaving for report in coordinator.reports] == [False, False]
