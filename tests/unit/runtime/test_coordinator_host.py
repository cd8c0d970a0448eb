"""The coordinator's process, with shards in memory that say what they are told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import ClusterConfig, ScheduleConfig, SnapshotConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import (
    ConfigError,
    ProcessLostError,
    RunError,
    ShardRefusedError,
    TransportError,
    place_of,
)
from distbelief.faults.points import Fault
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.runtime import coordinator_host as module
from distbelief.runtime import regular_snapshots
from distbelief.runtime import snapshots as taking
from distbelief.runtime.coordinator_host import CoordinatorHost
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.snapshots import manifests
from distbelief.runtime.task import Task
from distbelief.storage import LocalStorage
from distbelief.types import (
    Intervals,
    ItemOutcome,
    Push,
    PushReply,
    Refusal,
    ReplicaReport,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

DEADLINE_S = 20.0
AWAY = TransportError(0, "UNAVAILABLE", "away")
LOST = ProcessLostError("shard 0", "killed")
SELDOM = SnapshotConfig(snapshot_every=10**9, snapshot_s=1e9)


def until(condition: Callable[[], object]) -> None:
    """Asks again and again until it holds."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


@dataclass
class FakeShard:
    """Has applied the items below ``below``, but for those set aside.

    Each call of ``state``, ``set_aside`` or ``save`` takes its next answer first, which may be an
    error. Of ``state`` those before the run's first snapshot are not counted, and have no answer.
    """

    index: int = 0
    below: int = 0
    incarnation: int = 1
    skipped: int = 0
    aside: dict[int, str] = field(default_factory=dict)
    answers: list[BaseException | None] = field(default_factory=list)
    aside_answers: list[BaseException | None] = field(default_factory=list)
    save_answers: list[BaseException | None] = field(default_factory=list)
    always: BaseException | None = None
    began: bool = False
    saved: list[int] = field(default_factory=list)
    on_poll: Callable[[], object] = lambda: None
    polls: int = 0
    told: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    polled_by: str = ""

    def state(self) -> ShardState:
        if self.began:
            self.polls += 1
            self.polled_by = threading.current_thread().name
            self.on_poll()
            answer = self.answers.pop(0) if self.answers else self.always
            if answer is not None:
                raise answer
        return self._account()

    def pause(self, seconds: float) -> ShardState:
        return self._account()

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        answer = self.save_answers.pop(0) if self.save_answers else None
        if answer is not None:
            raise answer
        self.began = True
        self.saved.append(snapshot)
        return ShardFile(
            name=f"shard-{self.index}",
            nbytes=8,
            sha256="",
            n_shards=9,
            state=self._account(),
            paused_s=0.25 + self.index,
        )

    def _account(self) -> ShardState:
        below, aside = self.below, dict(self.aside)
        applied, begin = [], 0
        for item in [*sorted(i for i in aside if i < below), below]:
            if begin < item:
                applied.append((begin, item))
            begin = item + 1
        return ShardState(
            shard=self.index,
            incarnation=self.incarnation,
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
            queued=3,
            nbytes_received=1000,
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
    storage: LocalStorage

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.storage) if event["kind"] == kind]

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
    monkeypatch.setattr(regular_snapshots, "LOOK_S", 0.002)
    with ExitStack() as stack:

        def make(
            n_shards: int = 1,
            *,
            n_items: int = 30,
            patience_s: float = 60.0,
            entered: bool = True,
            snapshots: SnapshotConfig = SELDOM,
            resumed: Manifest | None = None,
            tensorboard: bool = False,
            incarnation: int = 1,
            epochs_told: int = 0,
            number: int = 1,
            replicas: frozenset[int] = frozenset(),
            lost: frozenset[int] = frozenset(),
            faults: tuple[Fault, ...] = (),
            **changes: Any,
        ) -> Hosted:
            plan = ItemPlan(n_examples=45, batch_size=10, n_push=1, n_items=n_items)
            shards = [FakeShard(i, **changes) for i in range(n_shards)]
            evaluations = Evaluations()
            storage = LocalStorage(tmp_path)
            spec = HostSpec(
                config=TrainConfig(
                    cluster=ClusterConfig(patience_s=patience_s),
                    snapshots=snapshots,
                    tensorboard=tensorboard,
                ),
                task=Task(),
                schedule=Schedule(ScheduleConfig(lr=0.5), plan),
                layout="fingerprint",
                storage=storage,
                started_at=time.time(),
                resumed=resumed,
                incarnation=incarnation,
                epochs_told=epochs_told,
                start=number,
                replicas=replicas,
                lost=lost,
                faults=faults,
            )
            host = CoordinatorHost(spec, shards, evaluations)
            if entered:
                stack.enter_context(host)
                stack.callback(evaluations.gate.set)
            return Hosted(host, shards, evaluations, storage)

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
    return {t.name for t in threading.enumerate()} & {"coordinator", "evaluation", "snapshots"}


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
    assert found.validation == {"epoch": 2, "top1": 0.2}
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
    failed = [(e["epoch"], e["cause"]) for e in h.events("evaluation_failed")]
    assert [epoch for epoch, _ in failed] == [1, 2]
    assert failed[0][1].startswith("ValueError: a bug (")
    assert failed[1][1] == str(AWAY)
    assert h.told("evaluation") == [3]
    assert h.host.run_report().failure == ""
    assert threads() == {"coordinator", "evaluation", "snapshots"}


def test_without_validation_images_nothing_is_told(start: Host) -> None:
    h = start(n_items=15)
    h.evaluations.answers = [None, None]
    h.shards[0].below = 10
    until(lambda: h.evaluations.n == 2)
    h.shards[0].below = 15
    h.host.conclude(lambda: None)
    assert h.told("evaluation") == [3]  # that of conclude, which had an answer


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


def test_a_shard_that_is_never_told_fails_the_run(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_S", 0.05)
    h = start(n_shards=2)
    h.shards[1].aside_answers = 1_000_000 * [AWAY]
    poison(h)
    until(lambda: h.host.run_report().failure)
    assert h.host.run_report().failure == str(AWAY)
    assert h.events("set_aside") == []


@pytest.mark.parametrize(("n_skipped", "fails"), [(0, False), (10, False), (11, True)])
def test_too_many_unreadable_images_fail_the_run(n_skipped: int, fails: bool, start: Host) -> None:
    h = start(n_items=100)
    h.host.report(report(0, done(0, unreadable=("a.jpg",)), done(1, unreadable=("b.jpg",))))
    h.shards[0].skipped = n_skipped
    if fails:
        until(lambda: h.events("failure"))
        assert h.host.run_report().failure == (
            "11 of 0 images could not be read: mend or remove them "
            "(a.jpg, b.jpg; all are in the push logs, as skipped)"
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
            f"{n_aside} of {n_items} items had to be set aside, {n_aside} of them since: "
            "not_finite, 3 times; the training has diverged; lower --lr, or set --clip-norm; if so "
            "from the start, look at the data"
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
    monkeypatch.setattr(module, "AWAY_S", 3.5)
    h = start(answers=list(answers), on_poll=clock.pass_)
    if polls is None:
        until(lambda: h.shards[0].polls > len(answers) + 5)
        assert h.host.run_report().failure == ""
        return
    until(lambda: h.host.run_report().failure)
    cause = answers[-1]
    ours = not isinstance(cause, ZeroDivisionError)
    expected = str(cause) if ours else f"ZeroDivisionError: a bug{place_of(cause)}"
    assert h.host.run_report().failure == expected
    until(lambda: "coordinator" not in threads())
    assert h.told("failure", "cause") == [expected]
    assert h.shards[0].polls == polls


def test_a_shard_that_stays_away_fails_the_run(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_S", 0.05)
    h = start(always=AWAY)
    until(lambda: h.host.run_report().failure)
    assert h.host.run_report().failure == str(AWAY)


def test_a_shard_that_comes_back_is_followed(start: Host) -> None:
    h = start(answers=[AWAY, None, AWAY, AWAY])
    h.shards[0].below = 5
    until(lambda: h.events("epoch"))
    assert h.host.run_report().failure == ""


# Snapshots


def snapshots(h: Hosted) -> list[tuple[int, str, int]]:
    """Number, reason and examples of those that were told."""
    told = h.events("snapshot")
    kept = [e["number"] for e in told][-2:]
    until(lambda: [m.number for m in manifests(h.storage)[0]] == kept)
    return [(e["number"], e["reason"], e["examples_applied"]) for e in told]


def test_the_first_snapshot_precedes_everything(start: Host) -> None:
    h = start(n_shards=2)
    assert snapshots(h) == [(0, "start", 0)]
    (told,) = h.events("snapshot")
    assert (told["even"], told["pause_seconds"], told["nbytes"]) == (True, 1.25, 16)
    (manifest,), _ = manifests(h.storage)
    assert (manifest.layout, manifest.n_parameters, manifest.examples_applied) == (
        "fingerprint",
        2,
        0,
    )
    noted = h.host.run_report().snapshot
    assert noted is not None
    assert noted.pop("seconds") >= 0.0
    t = round(manifest.elapsed_s, 3)
    assert noted == {"number": 0, "even": True, "examples_applied": 0, "t": t}


@pytest.mark.parametrize("error", [ShardRefusedError(0, "cannot_save", "full"), AWAY, LOST])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_whose_first_snapshot_fails_does_not_begin(error: RunError, start: Host) -> None:
    h = start(entered=False, save_answers=[error])
    with pytest.raises(ConfigError) as caught:
        h.host.__enter__()
    assert caught.value.field == "run_dir"
    assert caught.value.problem == f"the first snapshot failed: {error}"
    assert threads() == set()
    h.host._record.close()


def test_a_first_manifest_that_cannot_be_written_is_told_as_the_folders(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(storage: object, name: str, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(taking, "write_json", full)
    h = start(entered=False)
    try:
        with pytest.raises(ConfigError):
            h.host.__enter__()
    finally:
        h.host._record.close()


def test_a_host_that_cannot_begin_leaves_nothing_open(start: Host) -> None:
    h = start(entered=False, save_answers=[LOST])
    with pytest.raises(ConfigError):
        h.host.__enter__()
    try:
        assert h.host._record._events._file._file.closed  # type: ignore[attr-defined]
    finally:
        h.host._record.close()


def test_a_snapshot_every_so_many_examples_of_all_shards(start: Host) -> None:
    h = start(n_shards=2, snapshots=SnapshotConfig(snapshot_every=20))
    h.shards[0].below, h.shards[1].below = 4, 1
    h.let_it_poll()
    h.shards[1].below = 2
    until(lambda: len(h.events("snapshot")) == 2)
    h.shards[1].below = 3
    h.let_it_poll()
    h.shards[1].below = 4
    until(lambda: len(h.events("snapshot")) == 3)
    assert snapshots(h) == [(0, "start", 0), (1, "due", 20), (2, "due", 40)]
    assert h.shards[0].saved == h.shards[1].saved == [0, 1, 2]


def test_by_default_a_snapshot_at_each_epochs_end(start: Host) -> None:
    h = start(snapshots=SnapshotConfig())
    h.shards[0].below = 4
    h.let_it_poll()
    h.shards[0].below = 5
    until(lambda: len(h.events("snapshot")) == 2)
    assert snapshots(h) == [(0, "start", 0), (1, "due", 45)]


def test_a_snapshot_that_fails_is_told_and_tried_again(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regular_snapshots, "RETRY_S", 0.001)
    monkeypatch.setattr(regular_snapshots, "RETRY_AWAY_S", 0.001)
    h = start(snapshots=SnapshotConfig(snapshot_every=10))
    h.shards[0].save_answers = [ShardRefusedError(0, "cannot_save", "full"), AWAY]
    h.shards[0].below = 1
    until(lambda: len(h.events("snapshot")) == 2)
    assert [(e["reason"], e["cause"]) for e in h.events("snapshot_failed")] == [
        ("due", "shard 0 refused (cannot_save): full"),
        ("due", str(AWAY)),
    ]
    assert snapshots(h) == [(0, "start", 0), (3, "due", 10)]
    until(lambda: (h.host.run_report().snapshot or {}).get("number") == 3)
    assert h.storage.names("snapshots") == ["000000", "000003"]  # nothing is left of the others
    found = h.host.run_report()
    assert found.failure == ""
    assert found.snapshot is not None
    assert (found.snapshot["number"], "failed" in found.snapshot) == (3, False)


def test_after_a_snapshot_that_failed_the_next_is_not_tried_at_once(
    start: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regular_snapshots, "RETRY_AWAY_S", 30.0)
    h = start(snapshots=SnapshotConfig(snapshot_every=10))
    h.shards[0].save_answers = 1000 * [AWAY]
    h.shards[0].below = 1
    until(lambda: h.events("snapshot_failed"))
    h.let_it_poll()
    assert len(h.events("snapshot_failed")) == 1
    found = h.host.run_report().snapshot
    assert found is not None
    assert (found["number"], found["failed"]) == (0, str(AWAY))


def test_a_run_that_goes_on_elsewhere_takes_no_more_snapshots(start: Host) -> None:
    h = start(snapshots=SnapshotConfig(snapshot_every=10))
    h.storage.write("config.json", b'{"incarnation": 2}')
    h.shards[0].below = 1
    until(lambda: h.host.dead)
    assert h.host.dead == "start 2 of the run goes on elsewhere; this one ends"
    assert h.host.run_report().failure == "", "it is this process that is of no use any more"
    assert h.shards[0].saved == [0]
    assert h.storage.names("snapshots") == ["000000"]


def test_the_last_snapshot_is_of_the_end(start: Host) -> None:
    h = start(n_items=5)
    h.shards[0].below = 5
    found = h.host.conclude(lambda: None)
    assert snapshots(h) == [(0, "start", 0), (1, "end", 45)]
    assert found.snapshot is not None
    assert (found.snapshot["number"], found.snapshot["examples_applied"]) == (1, 45)


def test_a_last_snapshot_that_fails_leaves_the_model(start: Host) -> None:
    h = start(n_items=5, below=5)
    h.shards[0].save_answers = [LOST]
    written: list[bool] = []
    assert h.host.conclude(lambda: written.append(True)).finished
    assert written == [True]
    assert h.told("snapshot_failed", "cause") == [str(LOST)]


def test_the_last_snapshot_is_taken_while_an_evaluation_is_at_work(start: Host) -> None:
    h = start()
    h.evaluations.gate.clear()
    h.shards[0].below = 5
    until(lambda: h.evaluations.n == 1)
    h.shards[0].below = 7
    with ThreadPoolExecutor(1) as pool:
        concluding = pool.submit(h.host.conclude, lambda: None)
        try:
            until(lambda: len(h.events("snapshot")) == 2)
            assert (concluding.done(), h.events("evaluation")) == (False, [])
        finally:
            h.evaluations.gate.set()
        concluding.result(DEADLINE_S)
    assert snapshots(h) == [(0, "start", 0), (1, "end", 65)]
    assert h.told("evaluation") == [1]


# A run that goes on


def of_snapshot(number: int = 4) -> Manifest:
    """After one epoch and two items more, by one shard."""
    state = FakeShard(below=7)._account()
    file = ShardFile(name="shard-0", nbytes=8, sha256="", n_shards=1, state=state)
    return Manifest(
        number=number,
        even=True,
        examples_applied=65,
        layout="fingerprint",
        n_parameters=1,
        elapsed_s=12.0,
        losses={"loss": 2.0},
        validation={"epoch": 1, "top1": 0.5},
        files=(file,),
    )


def test_a_resumed_run_goes_on_where_it_was(start: Host) -> None:
    h = start(resumed=of_snapshot(), below=7, began=True, epochs_told=1)
    assert h.events("snapshot") == []
    found = h.host.run_report()
    assert (found.epoch, found.examples_applied, found.losses) == (2, 65, {"loss": 2.0})
    assert found.validation == {"epoch": 1, "top1": 0.5}
    assert found.snapshot == {
        "number": 4,
        "even": True,
        "examples_applied": 65,
        "t": 12.0,
        "seconds": None,
    }
    assert [item.number for item in h.host.report(report()).items] == [7, 8]
    h.let_it_poll()
    assert h.events("epoch") == []  # the first one's end was told before
    h.shards[0].below = 10
    until(lambda: h.events("evaluation"))
    assert (h.told("epoch"), h.told("evaluation")) == ([2], [2])


@pytest.mark.parametrize("epochs_told", [0, 3])
def test_an_epoch_whose_end_was_never_told_is_told_by_the_resumed_run(
    epochs_told: int, start: Host
) -> None:
    """A run may have died between a snapshot and the event; or have gone back behind events."""
    h = start(resumed=of_snapshot(), below=7, began=True, epochs_told=epochs_told)
    h.shards[0].below = 10
    until(lambda: 2 in h.told("epoch"))
    assert h.told("epoch") == ([1, 2] if epochs_told == 0 else [2])


def test_snapshots_of_a_resumed_run_are_counted_from_the_one_it_goes_on_from(
    start: Host, tmp_path: Path
) -> None:
    (tmp_path / "snapshots" / "000006").mkdir(parents=True)  # it was never finished
    every = SnapshotConfig(snapshot_every=20)
    h = start(resumed=of_snapshot(), below=7, began=True, snapshots=every)
    h.let_it_poll()
    assert h.events("snapshot") == []
    h.shards[0].below = 9
    until(lambda: h.events("snapshot"))
    assert snapshots(h) == [(7, "due", 85)]
    until(lambda: not (tmp_path / "snapshots" / "000006").exists())


# A coordinator that takes the place of one that has died


def test_it_goes_on_from_what_the_shards_have_and_takes_no_first_snapshot(start: Host) -> None:
    first = start(below=7)
    until(lambda: first.told("epoch") == [1])
    h = start(below=7, number=2, began=True)
    assert [e["number"] for e in h.events("snapshot")] == [0], "that of the first one"
    found = h.host.run_report()
    assert (found.epoch, found.examples_applied) == (2, 65)
    assert found.snapshot is not None
    assert found.snapshot["number"] == 0
    assert [item.number for item in h.host.report(report()).items] == [7, 8]
    h.let_it_poll()
    assert h.told("epoch") == [1], "it was told before"


def test_its_leases_are_newer_than_those_of_any_before(start: Host) -> None:
    def leases(**changes: Any) -> list[int]:
        orders = start(began=True, **changes).host.report(report())
        return [item.lease for item in orders.items]

    found = [
        leases(),
        leases(number=2),
        leases(number=3),
        leases(incarnation=2),
        leases(incarnation=2, number=2),
    ]
    assert all(max(a) < min(b) for a, b in pairwise(found))


def test_it_leases_nothing_until_all_have_said_what_they_hold(start: Host) -> None:
    h = start(number=2, began=True, replicas=frozenset({0, 1, 4}), lost=frozenset({4}))
    assert h.host.report(report(0, held=((3, 77),))).items == ()
    leased = h.host.report(report(1, held=((0, 78),))).items
    assert [item.number for item in leased] == [1], "and what others hold stays theirs"
    assert h.host.report(report(4)).stop, "it is not heard any more"
    assert h.events("replica_joined") == [], "they had joined before"


def test_its_first_look_waits_for_a_shard_that_is_away(start: Host) -> None:
    h = start(number=2, began=True, answers=[AWAY, AWAY], below=3)
    assert h.shards[0].polls >= 3
    assert h.host.run_report().examples_applied == 30


@pytest.mark.parametrize(("number", "patience_s"), [(1, 60.0), (2, 0.01)])
def test_it_does_not_wait_for_ever_and_the_first_one_not_at_all(
    number: int, patience_s: float, start: Host
) -> None:
    h = start(number=number, began=True, always=AWAY, patience_s=patience_s, entered=False)
    with pytest.raises(TransportError):
        h.host.__enter__()
    assert threads() == set()


def test_what_a_shard_has_forgotten_is_told_and_done_again(start: Host) -> None:
    h = start(below=7)
    until(lambda: h.told("epoch") == [1])
    h.shards[0].incarnation, h.shards[0].below = 2, 3
    until(lambda: h.events("shard_forgot"))
    (told,) = h.events("shard_forgot")
    about = {"shard": 0, "incarnation": 2, "items": 4, "from_clock": 7, "to_clock": 3}
    assert {name: told[name] for name in about} == about
    found = h.host.run_report()
    assert [(s["incarnation"], s["forgotten"]) for s in found.shards] == [(2, 4)]
    assert (found.epoch, found.examples_applied) == (1, 30)
    assert [item.number for item in h.host.report(report()).items] == [3, 4]
    h.shards[0].below = 5
    until(lambda: h.told("epoch") == [1, 1])  # once more


@pytest.mark.parametrize("point", ["before_lease", "before_observe", "after_observe"])
def test_one_that_dies_is_dead_for_all_who_call_it(point: str, start: Host) -> None:
    h = start(faults=(Fault(point, "coordinator", nth=2, action="die"),))

    def asked() -> str:
        with suppress(ProcessLostError):
            h.host.report(report())
        return h.host.dead

    until(asked)
    assert point in h.host.dead
    with pytest.raises(ProcessLostError, match="the coordinator was lost: it died at"):
        h.host.report(report())
    assert h.host.run_report().failure == "", "another can take its place"
    polls = h.shards[0].polls
    until(lambda: not threads())
    assert h.shards[0].polls <= polls + 1


# The end


def test_a_run_that_was_stopped_is_not_evaluated_once_more(start: Host) -> None:
    h = start(below=7, n_items=10)
    written: list[bool] = []
    found = h.host.conclude(lambda: written.append(True))
    assert (found.finished, written) == (False, [True])
    assert h.evaluations.n == len(h.events("evaluation"))
    assert 2 not in h.told("evaluation")
    again = start(below=3, n_items=10)
    again.host.conclude(lambda: None)
    assert again.evaluations.n == 0


def test_the_model_is_written_before_it_is_evaluated(start: Host) -> None:
    h = start(n_items=10, skipped=3)
    h.shards[0].below = 10
    until(lambda: h.events("evaluation"))
    evaluated: list[int] = []
    found = h.host.conclude(lambda: evaluated.append(h.evaluations.n))
    assert (evaluated, h.evaluations.n) == ([1], 2)
    assert (found.finished, found.examples_applied, found.examples_skipped) == (True, 90, 3)
    assert (found.epoch, found.n_epochs) == (2, 2)
    assert found.validation == {"epoch": 2, "top1": 0.2}
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
    (failed,) = h.events("evaluation_failed")
    assert failed["epoch"] == 1
    assert failed["cause"].startswith("MemoryError: no room (")


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
        "stages": 1,
        "examples": 20,
        "seconds_per_item": 2.0,
        "images_per_second": 5.0,
        "parameters_age_s": None,
        "state": "working",
        "waiting": 1.5 / 4.0,
    }
    assert [r["items"] for r in found.replicas] == [2, 1]


def test_no_more_than_a_few_unreadable_images_are_named(start: Host) -> None:
    h = start(n_items=100)
    for item in range(4):
        names = tuple(f"{item}-{n}" for n in range(4))
        h.host.report(report(0, done(item, unreadable=names)))
    h.shards[0].skipped = 16
    until(lambda: h.events("failure"))
    named = h.host.run_report().failure.partition("(")[2].partition(";")[0].split(", ")
    assert named == [f"{item}-{n}" for item in range(4) for n in range(4)][:10]


def test_the_report_has_the_shards(start: Host) -> None:
    h = start(n_shards=2, below=3)
    until(lambda: h.host.run_report().examples_applied)
    assert h.host.run_report().shards == tuple(
        {
            "shard": shard,
            "incarnation": 1,
            "clock": 3,
            "queued": 3,
            "applied": 3,
            "repeated": 0,
            "refused": 0,
            "forgotten": 0,
            "twin": 0,
            "mb_per_second": 0.0,
            "traffic": {},
        }
        for shard in (0, 1)
    )


@pytest.mark.parametrize(
    ("silent_s", "leaving", "state"),
    [(0.0, False, "working"), (5.5, False, "silent"), (5.5, True, "leaving")],
)
def test_how_a_replica_is_shown(silent_s: float, leaving: bool, state: str, start: Host) -> None:
    h = start()
    h.host.report(report(3, leaving=leaving))
    h.host._coordinator._membership.members[3].last_seen -= silent_s
    assert [r["state"] for r in h.host.run_report().replicas] == [state]


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
    monkeypatch.setattr(h.host._gauges._images, "now", lambda: 4.0)
    found = h.host.run_report()
    assert (found.total_examples, found.examples_applied, found.examples_set_aside) == (90, 20, 5)
    assert (found.left_s, found.images_per_second) == ((90 - 20 - 5) / 4.0, 4.0)
