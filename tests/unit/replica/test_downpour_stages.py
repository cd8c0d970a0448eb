"""The Downpour loop in the stages of a replica: all decide alike, as one loop alone would.

As in the tests of one loop the loss is linear and all arithmetic exact. Each stage has one half of
the weights and its own shard; examples travel as labels, so that every stage knows them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distbelief.data.loader import Batch, BatchRequest
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.replica import reporter as reporting
from distbelief.replica.buffers import FlatModel
from distbelief.replica.downpour import Downpour
from distbelief.replica.exchange import Exchange, Exchanged, Pending, ShardPort, ports_of
from distbelief.replica.feed import Feed
from distbelief.replica.group import Alone
from distbelief.replica.reporter import Progress, Reporter
from distbelief.replica.stagefeed import FollowingFeed, LeadingFeed
from distbelief.replication import ReplicaConfig
from distbelief.types import (
    ItemOutcome,
    LeasedItem,
    Orders,
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ReplicaReport,
    Version,
    Weights,
)

N_EXAMPLES, BATCH, SIZE, RATE = 40, 2, 4, 0.5
CPU = torch.device("cpu")
POISON = 1000
"""Of this label and those above it the second half of the features is not a number."""


def features(labels: Sequence[int]) -> torch.Tensor:
    rows = torch.tensor([[i, 1.0, i % 2, -2.0 * i] for i in labels])
    rows[[i >= POISON for i in labels], 3] = torch.nan
    return rows


class Weighing(nn.Module):
    """Two halves of a vector of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = (nn.Parameter(torch.full((2,), 99.0)) for _ in range(2))


@dataclass
class HalfStep:
    """The gradient of the mean of ``w . x`` for the weights that a stage has.

    The last stage tells the losses, of its own half alone.
    """

    model: nn.Module
    names: Sequence[str]
    seen: list[list[float]] = field(default_factory=list)
    before: Callable[[int], object] = lambda step: None

    def __call__(self, images: Any, labels: Any) -> Mapping[str, torch.Tensor]:
        self.before(len(self.seen))
        weights = [self.model.get_parameter(name) for name in self.names]
        self.seen.append(torch.cat(weights).tolist())
        if not len(labels):
            return {}
        rows = dict(zip(("low", "high"), features(labels.tolist()).split(2, dim=1), strict=True))
        parts = {n: (rows[n] @ w).mean() for n, w in zip(self.names, weights, strict=True)}
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        return {"loss": parts["high"].detach()} if "high" in parts else {}


@dataclass
class FakeShard:
    """Applies what is pushed, to a range of its own or a part of it, unless told to refuse."""

    begin: int
    end: int
    refuses: dict[int, Refusal]
    clock: int = 0
    pushes: list[Push] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.values = torch.zeros(self.end - self.begin)

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        with self.lock:
            self.calls.append("fetch")
            return self._fetch(out, begin)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        with self.lock:
            self.calls.append("push" if fetch_into is None else "push and fetch")
            self.pushes.append(replace(push, gradient=push.gradient.clone()))
            gradient = push.gradient.clone()
            push.gradient.fill_(55.0)  # undefined once the call has returned
            version = Version(1, self.clock)
            if push.item in self.refuses:
                reason = self.refuses[push.item]
                return PushReply(status=PushStatus.REFUSED, version=version, refusal=reason)
            self._part(push.begin, len(gradient)).sub_(gradient, alpha=push.rate)
            self.clock += 1
            version = Version(1, self.clock)
            fetched = None if fetch_into is None else self._fetch(fetch_into, push.begin)
            return PushReply(status=PushStatus.APPLIED, version=version, fetched=fetched)

    def _fetch(self, out: torch.Tensor, begin: int) -> Version:
        out.copy_(self._part(begin, len(out)))
        return Version(1, self.clock)

    def _part(self, begin: int, n: int) -> torch.Tensor:
        return self.values[begin - self.begin : begin - self.begin + n]


@dataclass
class Slow:
    """An exchange that is never done but when it is waited for."""

    pending: Pending

    def done(self) -> bool:
        return False

    def result(self) -> Exchanged:
        return self.pending.result()


@dataclass
class FakeCoordinator:
    """Says stop when it has heard of all items; grants more when all before have been done."""

    n_items: int
    grants: list[Callable[[], tuple[LeasedItem, ...]]]
    reports: list[ReplicaReport] = field(default_factory=list)

    def report(self, report: ReplicaReport) -> Orders:
        self.reports.append(report)
        if report.leaving or len(self.outcomes) == self.n_items:
            return Orders(stop=True)
        return Orders(items=self.grants.pop(0)() if self.grants and not report.held else ())

    @property
    def outcomes(self) -> list[ItemOutcome]:
        return [outcome for report in self.reports for outcome in report.outcomes]


@dataclass
class Run:
    """A replica, and what became of it."""

    shards: list[FakeShard]
    steps: list[HalfStep]
    loops: list[Downpour]
    coordinator: FakeCoordinator
    errors: list[Exception | None]

    @property
    def outcomes(self) -> list[ItemOutcome]:
        return self.coordinator.outcomes

    @property
    def seen(self) -> list[list[float]]:
        """The weights that each step saw."""
        return [
            list(chain(*of_step)) for of_step in zip(*(s.seen for s in self.steps), strict=True)
        ]

    @property
    def pushed(self) -> dict[int, list[float]]:
        """The gradient of each item that was pushed."""
        found: dict[int, torch.Tensor] = {}
        for push in (push for shard in self.shards for push in shard.pushes):
            gradient = found.setdefault(push.item, torch.full((SIZE,), 77.0))
            gradient[push.begin : push.begin + len(push.gradient)] = push.gradient
        return {item: gradient.tolist() for item, gradient in found.items()}

    @property
    def bases(self) -> list[list[int]]:
        return [[push.base.clock for push in shard.pushes] for shard in self.shards]

    @property
    def calls(self) -> list[list[str]]:
        return [shard.calls for shard in self.shards]

    @property
    def values(self) -> list[float]:
        return torch.cat([shard.values for shard in self.shards]).tolist()


def leased(plan: ItemPlan, *numbers: int) -> tuple[LeasedItem, ...]:
    items = [plan.item(n) for n in numbers]
    return tuple(LeasedItem(i.number, 100 + i.number, i.epoch, i.begin, i.end, RATE) for i in items)


MakeRun = Callable[..., Run]


@pytest.fixture
def run(thread_groups: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Runs a replica of one or two stages to its end."""
    monkeypatch.setattr(reporting, "REPORT_S", 0.002)

    def make(
        n_stages: int,
        n_items: int,
        *,
        poisoned: Sequence[int] = (),
        unreadable: Sequence[int] = (),
        refuses: Sequence[dict[int, Refusal]] = ({}, {}),
        later: int = 0,
        cut: int = 2,
        all_in: bool = False,
        slow: int | None = None,
        stops_in_first: bool = False,
        before: Callable[[int, int], object] = lambda stage, step: None,
        max_norm: float | None = None,
        clip_norm: float | None = None,
        **options: Any,
    ) -> Run:
        config = ReplicaConfig(batch_size=BATCH, **options)
        plan = ItemPlan(n_examples=N_EXAMPLES, batch_size=BATCH, n_push=config.n_push, n_items=99)
        shards = [FakeShard(0, cut, dict(refuses[0])), FakeShard(cut, SIZE, dict(refuses[1]))]
        ports = [ShardPort(s, i, s.begin, s.end, 1) for i, s in enumerate(shards)]
        grants = [lambda n=n: leased(plan, n) for n in range(n_items - later, n_items)]
        found = Run(shards, [], [], FakeCoordinator(n_items, grants), n_stages * [None])

        def submit(request: BatchRequest) -> Future[Batch]:
            kept = [i for i in request.indices.tolist() if i not in unreadable]
            skipped = tuple(i for i in request.indices.tolist() if i in unreadable)
            labels = np.array([i + POISON * (i in poisoned) for i in kept], dtype=np.int64)
            future: Future[Batch] = Future()
            images, indices = np.zeros((len(kept), 1)), np.array(kept, dtype=np.int64)
            future.set_result(Batch(images, labels, indices, skipped))
            return future

        feed = Feed(plan, lambda epoch: np.arange(N_EXAMPLES), submit, batches_ahead=4)
        feed.extend(leased(plan, *range(n_items - later)))
        begun, ended, end = threading.Event(), threading.Event(), feed.end
        if stops_in_first:
            found.coordinator.n_items = 0  # the first report is answered with the order to stop
            feed.end = lambda: (begun.wait(60), end(), ended.set())  # type: ignore[assignment,method-assign]
        groups: list[Any] = thread_groups(n_stages) if n_stages > 1 else [Alone()]
        whole = Layout.of(Weighing().named_parameters())

        def stage(number: int) -> None:
            group, model, progress = groups[number], Weighing(), Progress()
            names = ("low", "high") if n_stages == 1 else (("low",), ("high",))[number]
            owned = {name: model.get_parameter(name) for name in names}
            own = whole.part(names)
            step = HalfStep(model, names)
            exchange = Exchange(
                ports_of(ports, whole.ranges(names)),
                layout=whole.fingerprint,
                replica=0,
                patience_s=60.0,
            )
            source: Any = feed
            if n_stages > 1:
                leads = number == 0
                source = LeadingFeed(feed, group) if leads else FollowingFeed(group, 0)
            loop = Downpour(
                replica=0,
                flat=FlatModel(model, own, CPU, owned),
                layout=own,
                step=step,
                exchange=exchange,
                feed=source,
                progress=progress,
                config=config,
                seed=3,
                max_norm=max_norm,
                clip_norm=clip_norm,
                name_of="image {}".format,
                group=group,
            )

            if number == slow:
                start = exchange.start
                exchange.start = lambda *a: Slow(start(*a))  # type: ignore[assignment,method-assign]

            def before_step(at: int) -> None:
                if all_in and number != slow and loop._pending is not None:
                    wait(loop._pending._parts, timeout=60)
                before(number, at)
                begun.set()
                if stops_in_first:
                    ended.wait(60)

            step.before = before_step
            found.steps[number], found.loops[number] = step, loop
            try:
                with ExitStack() as stack:
                    stack.enter_context(exchange)
                    reporter = None
                    if number == 0:
                        reporter = stack.enter_context(
                            Reporter(found.coordinator, feed, progress, 0, n_stages=n_stages)
                        )
                    loop.run(reporter)
            except Exception as error:
                found.errors[number] = error
                if n_stages > 1:
                    group.leave()
            if number > 0:
                assert progress.take()[0] == ()  # nobody would fetch it there

        found.steps, found.loops = n_stages * [None], n_stages * [None]  # type: ignore[list-item]
        with ThreadPoolExecutor(n_stages) as pool:
            for future in [pool.submit(stage, number) for number in range(n_stages)]:
                future.result(timeout=100)
        return found

    return make


def assert_as_one(run: MakeRun, n_items: int, **options: Any) -> Run:
    """Two stages do in every respect what one does."""
    one, two = run(1, n_items, **options), run(2, n_items, **options)
    assert one.errors == [None]
    assert two.errors == [None, None]
    assert two.pushed == one.pushed
    assert two.calls == one.calls
    assert two.bases == one.bases
    assert two.values == one.values
    assert str(two.seen) == str(one.seen)  # where NaN equals itself
    assert [str(o.losses) for o in two.outcomes] == [str(o.losses) for o in one.outcomes]
    assert [replace(o, losses={}) for o in two.outcomes] == [
        replace(o, losses={}) for o in one.outcomes
    ]
    assert len({outcome.item for outcome in two.outcomes}) == len(two.outcomes) == n_items
    return two


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("n_push", "n_fetch"), [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 100)])
def test_two_stages_follow_the_steps_of_one(
    n_push: int, n_fetch: int, overlap: bool, run: MakeRun
) -> None:
    # With overlap: what has been sent comes in before the next step, so that all is determined.
    options = {"n_push": n_push, "n_fetch": n_fetch, "overlap": overlap, "all_in": overlap}
    two = assert_as_one(run, 5, **options)
    x = features(range(5 * n_push * BATCH)).reshape(5, n_push, BATCH, SIZE).mean(2).sum(1)
    assert two.pushed == {item: gradient.tolist() for item, gradient in enumerate(x)}
    assert two.values == (-RATE * x.sum(0)).tolist()
    assert [outcome.item for outcome in two.outcomes] == list(range(5))
    assert all(o.pushed and not o.refusal and "loss" in o.losses for o in two.outcomes)
    assert [report.stages for report in two.coordinator.reports] == (
        len(two.coordinator.reports) * [2]
    )


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize(("n_push", "n_fetch"), [(1, 1), (1, 3), (2, 1), (3, 1), (3, 2), (3, 100)])
def test_stages_fetch_at_the_same_steps_however_fast_their_shards_are(
    n_push: int, n_fetch: int, slow: int, run: MakeRun
) -> None:
    """One stage finds its exchange done whenever it looks, the other never."""
    two = run(2, 6, n_push=n_push, n_fetch=n_fetch, overlap=True, all_in=True, slow=slow)
    assert two.errors == [None, None]
    assert two.calls[0] == two.calls[1]
    assert two.bases[0] == two.bases[1]


def test_a_push_whose_halves_together_are_too_long_is_clipped_by_the_whole_norm(
    run: MakeRun,
) -> None:
    x = features(range(6)).reshape(3, BATCH, SIZE).mean(1)
    norms = torch.linalg.vector_norm(x.double(), dim=1)
    halves = torch.linalg.vector_norm(x.double().reshape(3, 2, 2), dim=2)
    limit = float((halves[1].max() + norms[1]) / 2)
    assert norms[0] < limit < norms[1] < norms[2]
    assert halves[1].max() < limit  # no stage would clip it by itself
    two = run(2, 3, clip_norm=limit, overlap=False)
    for item, pushed in two.pushed.items():
        factor = min(1.0, limit / float(norms[item]))
        torch.testing.assert_close(
            torch.tensor(pushed), x[item] * factor, rtol=1e-6, atol=0.0, msg=str(item)
        )
    assert two.pushed[0] == x[0].tolist()
    assert [outcome.refusal for outcome in two.outcomes] == ["", "", ""]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("n_push", [1, 2])
def test_a_push_whose_halves_together_are_too_long_is_refused_as_a_whole(
    n_push: int, overlap: bool, run: MakeRun
) -> None:
    x = features(range(3 * n_push * BATCH)).reshape(3, n_push, BATCH, SIZE).mean(2).sum(1)
    norms = torch.linalg.vector_norm(x.double(), dim=1)
    halves = torch.linalg.vector_norm(x.double().reshape(3, 2, 2), dim=2)
    limit = float((max(halves[2].max(), norms[1]) + norms[2]) / 2)
    two = assert_as_one(
        run, 3, n_push=n_push, max_norm=limit, overlap=overlap, all_in=overlap, n_fetch=n_push
    )
    assert halves[2].max() < limit  # no stage would refuse it by itself
    assert two.pushed.keys() == {0, 1}
    assert [(o.refusal, o.pushed) for o in two.outcomes] == [
        ("", True),
        ("", True),
        ("norm", False),
    ]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("n_push", "n_fetch"), [(1, 1), (1, 100), (2, 2), (2, 100)])
def test_what_is_not_finite_in_one_half_leaves_neither(
    n_push: int, n_fetch: int, overlap: bool, run: MakeRun
) -> None:
    bad = n_push * BATCH  # the first example of item 1
    two = assert_as_one(
        run,
        3,
        poisoned=[bad],
        n_push=n_push,
        n_fetch=n_fetch,
        overlap=overlap,
        all_in=overlap,
    )
    assert two.pushed.keys() == {0, 2}
    assert [(o.refusal, o.pushed) for o in sorted(two.outcomes, key=lambda o: o.item)] == [
        ("", True),
        ("not_finite", False),
        ("", True),
    ]
    # Nothing of it is left in what follows: both have fetched, and begun anew.
    x = features(range(3 * n_push * BATCH)).reshape(3, n_push, BATCH, SIZE).mean(2).sum(1)
    assert two.pushed[2] == x[2].tolist()
    assert two.values == (-RATE * (x[0] + x[2])).tolist()
    assert two.seen[2 * n_push] == (-RATE * x[0]).tolist()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("n_fetch", [1, 100])
def test_a_refusal_of_one_stages_shard_is_the_items_and_is_told_once(
    n_fetch: int, stage: int, overlap: bool, run: MakeRun
) -> None:
    refuses: list[dict[int, Refusal]] = [{}, {}]
    refuses[stage] = {1: Refusal.STALE}
    two = assert_as_one(run, 4, refuses=refuses, n_fetch=n_fetch, overlap=overlap, all_in=overlap)
    outcomes = {o.item: o for o in two.outcomes}
    assert [outcomes[i].refusal for i in range(4)] == ["", "stale", "", ""]
    assert all(o.pushed for o in two.outcomes)
    # Newer parameters are due in both stages.
    assert two.calls[0].count("push and fetch") == two.calls[1].count("push and fetch")


def test_a_refusal_of_the_last_item_is_told_before_the_end(run: MakeRun) -> None:
    two = assert_as_one(run, 2, refuses=[{}, {1: Refusal.STALE}], overlap=True, all_in=True)
    assert [outcome.refusal for outcome in two.outcomes] == ["", "stale"]


@pytest.mark.parametrize("overlap", [True, False])
def test_an_order_to_stop_ends_all_after_the_item_they_are_at(overlap: bool, run: MakeRun) -> None:
    two = run(2, 3, stops_in_first=True, refuses=[{}, {0: Refusal.STALE}], overlap=overlap)
    assert two.errors == [None, None]
    assert [(o.item, o.refusal) for o in two.outcomes] == [(0, "stale")]
    last = two.coordinator.reports[-1]
    assert last.leaving
    assert [item for item, _ in last.held] == [1, 2]


def test_of_two_refusals_the_first_stages_counts(run: MakeRun) -> None:
    two = run(2, 2, refuses=[{0: Refusal.NORM}, {0: Refusal.STALE}], overlap=False)
    assert [outcome.refusal for outcome in two.outcomes] == ["norm", ""]


@pytest.mark.parametrize("overlap", [True, False])
def test_after_a_wait_for_items_all_stages_fetch_anew(overlap: bool, run: MakeRun) -> None:
    two = run(2, 4, later=2, n_fetch=100, overlap=overlap)
    assert two.errors == [None, None]
    assert [outcome.item for outcome in two.outcomes] == [0, 1, 2, 3]
    expected = ["fetch", "push", "push", "fetch", "push", "fetch", "push"]
    assert two.calls == [expected, expected]
    x = features(range(4 * BATCH)).reshape(4, BATCH, SIZE).mean(1)
    assert two.seen[2] == (-RATE * x[:2].sum(0)).tolist()
    assert two.seen[3] == (-RATE * x[:3].sum(0)).tolist()


def test_a_run_may_have_no_items_at_all(run: MakeRun) -> None:
    two = run(2, 0)
    assert two.errors == [None, None]
    assert two.calls == [["fetch"], ["fetch"]]
    assert two.outcomes == []


def test_examples_that_cannot_be_read_are_told_with_the_whole_item(run: MakeRun) -> None:
    two = assert_as_one(run, 3, unreadable=[1, 2, 3], n_push=1, overlap=False)
    assert [outcome.examples for outcome in two.outcomes] == [1, 0, 2]
    assert [outcome.unreadable for outcome in two.outcomes] == [
        ("image 1",),
        ("image 2", "image 3"),
        (),
    ]
    assert two.pushed[1] == SIZE * [0.0]
    for shard in two.shards:
        assert [(push.examples, push.skipped) for push in shard.pushes] == [
            (1, (1,)),
            (0, (2, 3)),
            (2, ()),
        ]


@pytest.mark.parametrize("cut", [1, 3])
def test_shards_may_be_cut_elsewhere_than_stages(cut: int, run: MakeRun) -> None:
    """One shard gets a push from either stage."""
    two, one = (run(n, 3, cut=cut, overlap=False) for n in (2, 1))
    assert two.errors == [None, None]
    assert two.pushed == one.pushed
    assert two.values == one.values
    assert two.seen == one.seen
    assert [len(shard.pushes) for shard in two.shards] == ([3, 6] if cut == 1 else [6, 3])


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_of_one_stage_ends_the_others(at: int, run: MakeRun) -> None:
    def before(stage: int, step: int) -> None:
        if (stage, step) == (at, 1):
            raise MemoryError("no room")

    two = run(2, 3, before=before)
    error, other = two.errors[at], two.errors[1 - at]
    assert isinstance(error, MemoryError)
    assert type(other).__name__ == "GoneError"
    # Its items are given back when its loss is told.
    assert not any(report.leaving for report in two.coordinator.reports)
    assert {outcome.item for outcome in two.outcomes} <= {0}
