"""The Downpour loop, against a coordinator by hand and a real shard, in closed form.

The loss is linear in the parameters, so that an item's gradient is known whatever they are; rates
are powers of two and examples small integers, so that all arithmetic is exact.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from distbelief.config import OptimizerConfig, ReplicaConfig
from distbelief.data.loader import Batch, BatchRequest
from distbelief.data.permutation import epoch_permutation
from distbelief.errors import ShardRefusedError
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.replica import downpour as module
from distbelief.replica import reporter as reporting
from distbelief.replica.buffers import FlatModel
from distbelief.replica.downpour import Downpour
from distbelief.replica.exchange import Exchange, ShardPort
from distbelief.replica.feed import Feed
from distbelief.replica.reporter import Progress, Reporter
from distbelief.server.shard import Shard
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

SEED, N_EXAMPLES, BATCH, SIZE = 3, 40, 2, 4
CPU = torch.device("cpu")
StartShard = Callable[..., Shard]


def order_of(epoch: int) -> NDArray[np.int64]:
    return epoch_permutation(SEED, epoch, N_EXAMPLES)


def features(index: int) -> list[float]:
    return [float(index), 1.0, float(index % 2), -2.0 * index]


class Loader:
    """Every batch is there at once; some examples cannot be read, some are not finite."""

    def __init__(self, unreadable: Sequence[int] = (), poisoned: Sequence[int] = ()) -> None:
        self.unreadable, self.poisoned = set(unreadable), set(poisoned)

    def submit(self, request: BatchRequest) -> "Future[Batch]":
        kept = [i for i in request.indices.tolist() if i not in self.unreadable]
        skipped = [i for i in request.indices.tolist() if i in self.unreadable]
        rows = np.array([features(i) for i in kept], dtype=np.float32).reshape(-1, SIZE)
        for row, index in enumerate(kept):
            if index in self.poisoned:
                rows[row, 0] = np.nan
        found: Future[Batch] = Future()
        labels, indices = np.zeros(len(kept), dtype=np.int64), np.array(kept, dtype=np.int64)
        found.set_result(Batch(rows, labels, indices, tuple(skipped)))  # type: ignore[arg-type]
        return found


class Linear(nn.Module):
    """``w . x``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((SIZE,), 99.0))  # to be fetched over

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@dataclass
class LinearStep:
    """The mean of the model's outputs is the loss; keeps the parameters that each step saw."""

    model: nn.Module
    seen: list[list[float]] = field(default_factory=list)
    before: Callable[[int], object] = lambda step: None

    def __call__(self, rows: Any, labels: Any) -> dict[str, torch.Tensor]:
        self.before(len(self.seen))
        self.seen.append(self.model.get_parameter("weight").tolist())
        if not len(labels):
            return {}
        loss = self.model(torch.from_numpy(rows)).mean()
        loss.backward()
        return {"loss": loss.detach()}


@dataclass
class Spy:
    """Stands before the shard and keeps what passes."""

    shard: Shard
    pushes: list[Push] = field(default_factory=list)
    replies: list[PushReply] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    change: Callable[[Push], Push] = lambda push: push
    hold: Callable[[Push], object] = lambda push: None
    at_once: int = 0

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        with self._one():
            self.calls.append("fetch")
            return self.shard.fetch(out, begin=begin, weights=weights, unless=unless)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        with self._one():
            self.calls.append("push" if fetch_into is None else "push and fetch")
            self.pushes.append(replace(push, gradient=push.gradient.clone()))
            self.hold(push)
            reply = self.shard.push(self.change(push), fetch_into=fetch_into)
            self.replies.append(reply)
            push.gradient.fill_(55.0)  # undefined once the call has returned
            return reply

    @contextmanager
    def _one(self) -> Any:
        self.at_once += 1
        assert self.at_once == 1, "more than one exchange in flight"
        yield
        self.at_once -= 1

    @property
    def staleness(self) -> list[int | None]:
        return [reply.staleness for reply in self.replies]


@dataclass
class FakeCoordinator:
    """Hands out what it has, and says stop when it has heard of all that it ever handed out."""

    n_items: int
    grants: list[Callable[[], tuple[LeasedItem, ...]]] = field(default_factory=list)
    reports: list[ReplicaReport] = field(default_factory=list)
    fails_at: int | None = None
    fails_at_the_end: bool = False

    def report(self, report: ReplicaReport) -> Orders:
        self.reports.append(report)
        if len(self.reports) - 1 == self.fails_at or (report.leaving and self.fails_at_the_end):
            raise ConnectionError("the coordinator was lost")
        if report.leaving or len(self.outcomes) == self.n_items:
            return Orders(stop=True)
        # More is granted when all that was granted before has been done.
        idle = not report.held
        return Orders(items=self.grants.pop(0)() if idle and self.grants else ())

    @property
    def outcomes(self) -> list[ItemOutcome]:
        return [outcome for report in self.reports for outcome in report.outcomes]


@dataclass(kw_only=True)
class Replica:
    """All of one replica, its shard included, around the loop."""

    loop: Downpour
    step: LinearStep
    spy: Spy
    feed: Feed
    progress: Progress
    coordinator: FakeCoordinator
    exchange: Exchange
    plan: ItemPlan
    rates: Callable[[int], float]

    def leased(self, *numbers: int) -> tuple[LeasedItem, ...]:
        items = [self.plan.item(n) for n in numbers]
        return tuple(
            LeasedItem(i.number, 100 + i.number, i.epoch, i.begin, i.end, self.rates(i.number))
            for i in items
        )

    def run(self) -> None:
        with self.exchange, Reporter(self.coordinator, self.feed, self.progress, 0) as reporter:
            self.loop.run(reporter)

    def outcomes(self) -> dict[int, ItemOutcome]:
        found = {outcome.item: outcome for outcome in self.coordinator.outcomes}
        assert len(found) == len(self.coordinator.outcomes)  # each is reported once
        return found


MakeReplica = Callable[..., Replica]


@pytest.fixture
def make_replica(start_shard: StartShard, monkeypatch: pytest.MonkeyPatch) -> MakeReplica:
    """A replica with its first ``n_items`` in its feed already."""
    monkeypatch.setattr(reporting, "REPORT_S", 0.002)

    def make(
        n_items: int,
        *,
        momentum: float = 0.0,
        max_staleness: int | None = None,
        max_norm: float | None = None,
        clip_norm: float | None = None,
        loader: Loader | None = None,
        name_of: Callable[[int], str] = str,
        rates: Callable[[int], float] = lambda item: 0.5,
        **config: Any,
    ) -> Replica:
        settings = ReplicaConfig(batch_size=BATCH, **config)
        optimizer = OptimizerConfig(
            momentum=momentum, weight_decay=0.0, kernel="unfused", max_staleness=max_staleness
        )
        model = Linear()
        layout = Layout.of(model.named_parameters())
        shard = start_shard(SIZE, layout=layout.fingerprint, optimizer=optimizer)
        spy, step = Spy(shard), LinearStep(model)
        plan = ItemPlan(n_examples=N_EXAMPLES, batch_size=BATCH, n_push=settings.n_push, n_items=99)
        submit = (loader or Loader()).submit
        feed, progress = Feed(plan, order_of, submit, batches_ahead=4), Progress()
        exchange = Exchange(
            [ShardPort(spy, 0, 0, SIZE, incarnation=1)],
            layout=layout.fingerprint,
            replica=0,
            patience_s=60.0,
        )
        loop = Downpour(
            replica=0,
            flat=FlatModel(model, layout, CPU),
            layout=layout,
            step=step,  # type: ignore[arg-type]
            exchange=exchange,
            feed=feed,
            progress=progress,
            config=settings,
            seed=SEED,
            max_norm=max_norm,
            clip_norm=clip_norm,
            name_of=name_of,
        )
        replica = Replica(
            loop=loop,
            step=step,
            spy=spy,
            feed=feed,
            progress=progress,
            coordinator=FakeCoordinator(n_items),
            exchange=exchange,
            plan=plan,
            rates=rates,
        )
        feed.extend(replica.leased(*range(n_items)))
        return replica

    return make


def step_gradients(n_steps: int) -> torch.Tensor:
    """The gradient of each step of the run's first epoch, ``(n_steps, SIZE)``."""
    order = order_of(0)
    rows = torch.tensor([features(int(i)) for i in order])
    return rows.reshape(-1, BATCH, SIZE).mean(1)[:n_steps]


def values(shard: Shard) -> list[float]:
    out = torch.empty(SIZE)
    shard.fetch(out, begin=0)
    return out.tolist()


# Without overlap: every step rests on the last fetch and plain steps since


@pytest.mark.parametrize("n_fetch", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("n_push", [1, 2, 3])
def test_accrued_sums_local_steps_and_bases(
    n_push: int, n_fetch: int, make_replica: MakeReplica
) -> None:
    n_items, rate = 6, 0.5
    n_steps = n_items * n_push
    r = make_replica(n_items, n_push=n_push, n_fetch=n_fetch, overlap=False)
    r.run()
    g = step_gradients(n_steps)
    for item, push in enumerate(r.spy.pushes):
        assert push.item == item
        accrued = g[item * n_push : (item + 1) * n_push].sum(0)
        assert push.gradient.tolist() == accrued.tolist()
        # Fetches come after each n_fetch steps; the oldest that the item rests on is the last
        # before its first step, and the shard had then all items that were complete.
        fetched_at = item * n_push // n_fetch * n_fetch
        assert push.base == Version(1, fetched_at // n_push)
    for t, seen in enumerate(r.step.seen):
        fetched_at = t // n_fetch * n_fetch
        complete = fetched_at // n_push * n_push
        expected = -rate * (g[:complete].sum(0) + g[fetched_at:t].sum(0))
        assert seen == expected.tolist(), t
    assert values(r.spy.shard) == (-rate * g.sum(0)).tolist()
    assert r.spy.staleness == [i - i * n_push // n_fetch * n_fetch // n_push for i in range(6)]


@pytest.mark.parametrize(("overlap", "expected"), [(False, [0, 0, 0, 0]), (True, [0, 1, 1, 1])])
def test_the_staleness_of_one_replica_alone(
    overlap: bool, expected: list[int], make_replica: MakeReplica
) -> None:
    r = make_replica(4, overlap=overlap)
    r.run()
    assert r.spy.staleness == expected
    assert r.spy.shard.state().staleness == {n: expected.count(n) for n in set(expected)}


@pytest.mark.parametrize(
    ("n_push", "n_fetch", "per_two_items"),
    [
        (1, 1, ["push and fetch", "push and fetch"]),
        (1, 2, ["push", "push and fetch"]),
        (2, 1, ["fetch", "push and fetch", "fetch", "push and fetch"]),
        (2, 2, ["push and fetch", "push and fetch"]),
        (2, 4, ["push", "push and fetch"]),
        (2, 100, ["push", "push"]),
    ],
)
def test_a_push_every_n_push_steps_and_a_fetch_every_n_fetch(
    n_push: int, n_fetch: int, per_two_items: list[str], make_replica: MakeReplica
) -> None:
    r = make_replica(4, n_push=n_push, n_fetch=n_fetch, overlap=False)
    r.run()
    assert r.spy.calls == ["fetch", *per_two_items, *per_two_items]


def test_what_a_push_says_of_its_item(make_replica: MakeReplica) -> None:
    r = make_replica(3, n_push=2, overlap=False, rates=lambda item: 2.0**-item)
    r.run()
    assert [(p.item, p.lease, p.rate, p.examples) for p in r.spy.pushes] == [
        (0, 100, 1.0, 4),
        (1, 101, 0.5, 4),
        (2, 102, 0.25, 4),
    ]
    assert {(p.replica, p.begin, p.incarnation, p.skipped) for p in r.spy.pushes} == {(0, 0, 1, ())}


def test_local_steps_are_at_each_items_own_rate(make_replica: MakeReplica) -> None:
    r = make_replica(4, n_fetch=100, overlap=False, rates=lambda item: 2.0**-item)
    r.run()
    g = step_gradients(4)
    local = torch.zeros(SIZE)
    for t in range(4):
        assert r.step.seen[t] == local.tolist()
        local -= 2.0**-t * g[t]
    assert values(r.spy.shard) == local.tolist()


def test_momentum_is_the_shards_alone(make_replica: MakeReplica) -> None:
    r = make_replica(4, n_fetch=3, overlap=False, momentum=0.5)
    r.run()
    g = step_gradients(4)
    assert r.step.seen[1] == (-0.5 * g[0]).tolist()
    assert r.step.seen[2] == (-0.5 * (g[0] + g[1])).tolist()  # plain
    velocities = g[0], 0.5 * g[0] + g[1], 0.25 * g[0] + 0.5 * g[1] + g[2]
    assert r.step.seen[3] == (-0.5 * sum(velocities)).tolist()  # fetched


# With overlap


@pytest.mark.parametrize("n_push", [1, 2])
def test_with_overlap_an_item_rests_on_the_fetch_before_the_last_push(
    n_push: int, make_replica: MakeReplica
) -> None:
    r = make_replica(5, n_push=n_push, n_fetch=n_push, overlap=True)
    r.run()
    assert [p.base.clock for p in r.spy.pushes] == [0, 0, 1, 2, 3]
    assert r.spy.staleness == [0, 1, 1, 1, 1]
    assert r.spy.calls == ["fetch", *5 * ["push and fetch"]]
    g = step_gradients(5 * n_push)
    for item, push in enumerate(r.spy.pushes):
        assert push.gradient.tolist() == g[item * n_push : (item + 1) * n_push].sum(0).tolist()
    assert values(r.spy.shard) == (-0.5 * g.sum(0)).tolist()


def test_with_overlap_a_step_sees_the_shard_of_an_item_ago_and_its_own_step(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(6, overlap=True, momentum=0.5)
    r.run()
    g = step_gradients(6)
    shard, velocity = [torch.zeros(SIZE)], torch.zeros(SIZE)
    for t in range(6):
        velocity = 0.5 * velocity + g[t]
        shard.append(shard[-1] - 0.5 * velocity)
    assert r.step.seen[0] == [0.0] * SIZE
    for t in range(1, 6):
        assert r.step.seen[t] == (shard[t - 1] - 0.5 * g[t - 1]).tolist()


def test_parameters_that_come_in_within_an_item_are_taken_and_its_base_stays_the_oldest(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(3, n_push=2, n_fetch=2, overlap=True, momentum=0.5)

    def all_in(step: int) -> None:
        pending = r.loop._pending
        if pending is not None:  # the exchange of the item before has come to its end
            wait(pending._parts, timeout=60)

    r.step.before = all_in
    r.run()
    g = step_gradients(6)
    accrued = [g[0] + g[1], g[2] + g[3]]
    after_first = -0.5 * accrued[0]
    after_second = after_first - 0.5 * (0.5 * accrued[0] + accrued[1])
    assert r.step.seen == [
        [0.0] * SIZE,
        (-0.5 * g[0]).tolist(),
        (-0.5 * (g[0] + g[1])).tolist(),
        (after_first - 0.5 * g[2]).tolist(),  # came in at the edge after step 2
        (after_first - 0.5 * (g[2] + g[3])).tolist(),
        (after_second - 0.5 * g[4]).tolist(),
    ]
    assert [p.base.clock for p in r.spy.pushes] == [0, 0, 1]
    assert [p.gradient.tolist() for p in r.spy.pushes[:2]] == [a.tolist() for a in accrued]


def test_while_a_shard_is_away_one_item_more_is_computed(make_replica: MakeReplica) -> None:
    r = make_replica(4, overlap=True)
    events: list[str] = []
    second = threading.Event()

    def note(step: int) -> None:
        events.append(f"step {step}")
        if step == 1:
            second.set()

    def hold(push: Push) -> None:
        if push.item == 0:
            assert second.wait(60)  # it computes behind the push
        events.append(f"push {push.item}")

    r.step.before, r.spy.hold = note, hold
    r.run()
    assert events.index("step 1") < events.index("push 0") < events.index("step 2")
    assert events.index("push 1") < events.index("step 3")


# Outcomes


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("n_push", [1, 2])
def test_every_item_is_reported_with_its_losses(
    n_push: int, overlap: bool, make_replica: MakeReplica
) -> None:
    r = make_replica(4, n_push=n_push, n_fetch=n_push, overlap=overlap)
    r.run()
    outcomes = r.outcomes()
    assert sorted(outcomes) == [0, 1, 2, 3]
    g, seen = step_gradients(4 * n_push), torch.tensor(r.step.seen)
    losses = (g * seen).sum(1).reshape(4, n_push).mean(1)  # w . mean x, over the item's steps
    for item, outcome in outcomes.items():
        assert outcome.losses["loss"] == pytest.approx(losses[item].item())
        assert replace(outcome, losses={}) == ItemOutcome(
            item=item, examples=BATCH * n_push, losses={}
        )


@pytest.mark.parametrize("overlap", [True, False])
def test_the_last_push_is_collected_when_the_feed_runs_dry(
    overlap: bool, make_replica: MakeReplica
) -> None:
    r = make_replica(1, overlap=overlap)
    r.run()  # which ends only when the outcome of the item has been reported
    assert sorted(r.outcomes()) == [0]
    assert r.spy.shard.state().applied == ((0, 1),)
    assert not r.coordinator.reports[-2].leaving
    last = r.coordinator.reports[-1]
    assert (last.leaving, last.held) == (True, ())


@pytest.mark.parametrize("overlap", [True, False])
def test_after_a_wait_for_items_the_parameters_are_fetched_anew(
    overlap: bool, make_replica: MakeReplica, make_push: Callable[..., Push]
) -> None:
    r = make_replica(2, overlap=overlap)
    r.coordinator.n_items = 3

    def others_have_gone_on() -> tuple[LeasedItem, ...]:
        layout = r.spy.shard.spec.layout
        for item in range(50, 54):
            r.spy.shard.push(make_push(item, 16.0, layout=layout))
        return r.leased(2)

    r.coordinator.grants = [others_have_gone_on]
    r.run()
    expected = -0.5 * step_gradients(2).sum(0) - 4 * 16.0
    assert r.step.seen[2] == expected.tolist()
    assert r.spy.pushes[2].base == Version(1, 6)
    assert r.spy.staleness[2] == 0
    assert r.spy.calls[-2:] == ["fetch", "push and fetch"]


def test_examples_that_cannot_be_read_are_told(make_replica: MakeReplica) -> None:
    order = order_of(0).tolist()
    # Item 0 has steps of positions 0-1 and 2-3: it lacks one example, item 1 a whole step.
    loader = Loader(unreadable=[order[1], order[4], order[5]])
    r = make_replica(2, n_push=2, n_fetch=2, overlap=False, loader=loader)
    r.run()
    x = torch.tensor([features(i) for i in order])
    assert [(p.examples, p.skipped) for p in r.spy.pushes] == [
        (3, (order[1],)),
        (2, (order[4], order[5])),
    ]
    assert r.spy.pushes[0].gradient.tolist() == (x[0] + x[2:4].mean(0)).tolist()
    assert r.spy.pushes[1].gradient.tolist() == x[6:8].mean(0).tolist()
    assert [o.examples for o in r.outcomes().values()] == [3, 2]
    loss = r.outcomes()[1].losses["loss"]
    assert loss == pytest.approx((x[6:8].mean(0) * torch.tensor(r.step.seen[3])).sum().item())


def test_an_item_of_which_nothing_can_be_read_is_pushed_all_the_same(
    make_replica: MakeReplica,
) -> None:
    order = order_of(0).tolist()
    loader = Loader(unreadable=order[:2])
    r = make_replica(2, overlap=False, loader=loader, name_of="image {}.jpg".format)
    r.run()
    assert (r.spy.pushes[0].examples, r.spy.pushes[0].gradient.tolist()) == (0, [0.0] * SIZE)
    unreadable = tuple(f"image {index}.jpg" for index in order[:2])
    outcome = ItemOutcome(item=0, examples=0, losses={}, unreadable=unreadable)
    assert r.outcomes()[0] == outcome
    assert r.outcomes()[1].unreadable == ()


def test_dropout_is_seeded_by_item_and_step(
    make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[tuple[int, ...]] = []
    monkeypatch.setattr(module, "seed_dropout", lambda model, *numbers: seeds.append(numbers))
    make_replica(2, n_push=2).run()
    assert seeds == [(SEED, 0, 0), (SEED, 0, 1), (SEED, 1, 0), (SEED, 1, 1)]


# Refusals


def poisoned(*positions: int) -> Loader:
    order = order_of(0).tolist()
    return Loader(poisoned=[order[p] for p in positions])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("n_push", "bad_step"),
    [(1, 0), (2, 0), (2, 1)],  # steps of the item
)
@pytest.mark.parametrize("n_fetch", [1, 100])
def test_a_gradient_that_is_not_finite_never_leaves(
    n_push: int, bad_step: int, n_fetch: int, overlap: bool, make_replica: MakeReplica
) -> None:
    bad = n_push + bad_step  # of item 1
    r = make_replica(
        3, n_push=n_push, n_fetch=n_fetch, overlap=overlap, loader=poisoned(BATCH * bad)
    )
    r.run()
    assert [p.item for p in r.spy.pushes] == [0, 2]
    assert all(torch.isfinite(p.gradient).all() for p in r.spy.pushes)
    outcomes = r.outcomes()
    assert [outcomes[i].refusal for i in range(3)] == ["", "not_finite", ""]
    assert [outcomes[i].pushed for i in range(3)] == [True, False, True]
    assert outcomes[1].examples == BATCH * n_push
    assert r.spy.shard.state().refused == {}  # no shard saw it
    # The next item begins with fresh parameters, and nothing of the refused one is left in it.
    g = step_gradients(3 * n_push)
    first, last = g[:n_push].sum(0), g[2 * n_push :].sum(0)
    assert r.step.seen[2 * n_push] == (-0.5 * first).tolist()
    assert r.spy.pushes[1].base == Version(1, 1)
    assert r.spy.pushes[1].gradient.tolist() == last.tolist()
    assert values(r.spy.shard) == (-0.5 * (first + last)).tolist()


@pytest.mark.parametrize(("n_push", "bad_step"), [(1, 0), (3, 0), (3, 2)])
def test_the_examples_of_a_batch_that_is_not_finite_are_named(
    n_push: int, bad_step: int, make_replica: MakeReplica
) -> None:
    loader = poisoned(BATCH * (n_push + bad_step))
    order = order_of(0).tolist()
    item_1 = order[BATCH * n_push : 2 * BATCH * n_push]
    loader.unreadable = {item_1[-1]}
    r = make_replica(3, n_push=n_push, loader=loader, name_of="image {}.jpg".format)
    r.run()
    outcomes = r.outcomes()
    assert outcomes[1].culprits == tuple(f"image {index}.jpg" for index in item_1[:-1])
    assert outcomes[1].unreadable == (f"image {item_1[-1]}.jpg",)
    assert (outcomes[0].culprits, outcomes[2].culprits) == ((), ())


def test_no_more_than_some_are_named(
    make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CULPRITS", 3)
    r = make_replica(1, n_push=2, loader=poisoned(0))
    r.run()
    assert r.outcomes()[0].culprits == tuple(str(index) for index in order_of(0)[:3])


def test_nobody_is_named_for_parameters_that_are_not_finite(make_replica: MakeReplica) -> None:
    r = make_replica(2, overlap=False)
    r.spy.shard.load(torch.full((SIZE,), torch.nan))
    r.step.model.register_forward_hook(lambda model, inputs, out: out * model.weight.sum())
    r.run()
    assert [o.refusal for o in r.outcomes().values()] == 2 * ["not_finite"]
    assert [o.culprits for o in r.outcomes().values()] == [(), ()]


def test_nobody_is_named_for_a_norm_that_is_too_large(make_replica: MakeReplica) -> None:
    r = make_replica(1, max_norm=0.5)
    r.run()
    assert (r.outcomes()[0].refusal, r.outcomes()[0].culprits) == ("norm", ())


def test_a_gradient_of_too_large_a_norm_never_leaves(make_replica: MakeReplica) -> None:
    """The norm is that of the whole push, not of a step."""
    g = step_gradients(6)
    accrued = g.reshape(3, 2, SIZE).sum(1)
    norms = torch.linalg.vector_norm(accrued, dim=1)
    worst = int(norms.argmax())
    limit = float(norms.sort().values[1:].mean())  # between the largest and the second
    assert float(torch.linalg.vector_norm(g, dim=1).max()) < limit
    r = make_replica(3, n_push=2, overlap=False, max_norm=limit)
    r.run()
    assert [p.item for p in r.spy.pushes] == [i for i in range(3) if i != worst]
    refused = r.outcomes()[worst]
    assert (refused.refusal, refused.pushed) == ("norm", False)


def test_a_longer_push_is_clipped_as_a_whole(make_replica: MakeReplica) -> None:
    accrued = step_gradients(6).reshape(3, 2, SIZE).sum(1)
    norms = torch.linalg.vector_norm(accrued, dim=1)
    limit = float(norms.sort().values[1])  # one is longer, one is shorter
    r = make_replica(3, n_push=2, overlap=False, clip_norm=limit)
    r.run()
    for push, gradient, norm in zip(r.spy.pushes, accrued, norms, strict=True):
        expected = gradient * min(1.0, limit / float(norm))
        torch.testing.assert_close(push.gradient, expected, rtol=1e-6, atol=0.0)
    assert float(torch.linalg.vector_norm(r.spy.pushes[int(norms.argmax())].gradient)) < float(
        norms.max()
    )
    assert all(outcome.refusal == "" for outcome in r.outcomes().values())


def test_a_norm_at_the_limit_is_taken(make_replica: MakeReplica) -> None:
    limit = float(torch.linalg.vector_norm(step_gradients(1)[0]))
    r = make_replica(1, overlap=False, max_norm=limit)
    r.run()
    assert r.outcomes()[0].refusal == ""


def test_a_shards_refusal_is_the_items_and_was_pushed(make_replica: MakeReplica) -> None:
    r = make_replica(3, overlap=True, max_staleness=0)
    r.run()
    outcomes = r.outcomes()
    # Item 1 is stale by one; the fetch after its refusal comes in only after item 2.
    assert [outcomes[i].refusal for i in range(3)] == ["", "stale", ""]
    assert all(outcome.pushed for outcome in outcomes.values())
    assert r.spy.shard.state().refused == {"stale": 1}
    assert r.spy.calls[:4] == ["fetch", "push and fetch", "push and fetch", "fetch"]
    assert values(r.spy.shard) == (-0.5 * step_gradients(3)[[0, 2]].sum(0)).tolist()


def test_after_a_refusal_newer_parameters_are_fetched_at_the_next_edge(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(6, n_fetch=100, overlap=False, max_staleness=0)
    r.run()
    outcomes = r.outcomes()
    # Item 2 rests on what item 1 rested on, and the fetch comes with its push; items 3 and 4 have
    # the shard's newest, since the refusal of item 2 has item 3's push bring a fetch along, too.
    assert [outcomes[i].refusal for i in range(6)] == ["", "stale", "stale", "", "", "stale"]
    push, both = "push", "push and fetch"
    assert r.spy.calls == ["fetch", push, push, both, "fetch", both, push, push]
    assert [p.base.clock for p in r.spy.pushes] == [0, 0, 0, 1, 2, 2]
    g = step_gradients(6)
    assert r.step.seen[3] == (-0.5 * g[0]).tolist()
    assert r.step.seen[4] == (-0.5 * (g[0] + g[3])).tolist()


def test_after_a_refusal_newer_parameters_are_fetched_within_the_next_item(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(4, n_push=2, n_fetch=100, overlap=False, max_staleness=0)
    r.run()
    outcomes = r.outcomes()
    assert [outcomes[i].refusal for i in range(4)] == ["", "stale", "stale", ""]
    # Item 2's first edge fetches, its push is refused for its oldest base, and item 3 fetches.
    assert r.spy.calls == ["fetch", "push", "push", "fetch", "push", "fetch", "push"]
    assert r.step.seen[5] == (-0.5 * step_gradients(2).sum(0)).tolist()


def test_an_item_that_another_has_applied_is_no_refusal(
    make_replica: MakeReplica, make_push: Callable[..., Push]
) -> None:
    r = make_replica(2, overlap=False)
    r.spy.shard.push(make_push(0, 8.0, layout=r.spy.shard.spec.layout))
    r.run()
    assert [reply.status for reply in r.spy.replies] == [
        PushStatus.ALREADY_APPLIED,
        PushStatus.APPLIED,
    ]
    assert [o.refusal for o in r.outcomes().values()] == ["", ""]
    assert r.step.seen[1] == [-8.0] * SIZE  # the shard's truth in the place of its own step


# Ends


def reporters() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "replica-0-reporter"]


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_an_error_of_the_coordinator_ends_the_loop_and_is_raised(
    fails_at: int, make_replica: MakeReplica
) -> None:
    r = make_replica(2)
    r.coordinator.n_items = 1000  # it would never say stop
    r.coordinator.fails_at = fails_at
    with pytest.raises(ConnectionError, match="the coordinator was lost"):
        r.run()
    assert len(r.coordinator.reports) == fails_at + 1
    assert reporters() == []
    assert r.loop._pending is None  # what was under way has been waited for


def test_an_error_of_a_shard_ends_the_loop_and_no_leave_is_taken(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(3, overlap=False)
    r.spy.change = lambda push: replace(push, layout="other") if push.item == 1 else push
    with pytest.raises(ShardRefusedError) as caught:
        r.run()
    assert caught.value.reason == Refusal.LAYOUT
    # Its items are given back when its loss is told.
    assert not any(report.leaving for report in r.coordinator.reports)
    assert set(r.outcomes()) <= {0}
    assert reporters() == []


def test_an_error_of_the_last_report_is_raised(make_replica: MakeReplica) -> None:
    r = make_replica(2, overlap=False)
    r.coordinator.fails_at_the_end = True
    with pytest.raises(ConnectionError, match="the coordinator was lost"):
        r.run()
    assert sorted(r.outcomes()) == [0, 1]
    assert r.coordinator.reports[-1].leaving
    assert reporters() == []


def test_an_error_of_the_reports_does_not_hide_the_one_that_passes(
    make_replica: MakeReplica,
) -> None:
    r = make_replica(1)
    r.coordinator.fails_at = 0
    reporter = Reporter(r.coordinator, r.feed, r.progress, 0)

    def work() -> None:
        with reporter:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        work()
    assert not any(report.leaving for report in r.coordinator.reports)
    assert reporters() == []


def test_an_example_that_breaks_the_loader_ends_the_loop(make_replica: MakeReplica) -> None:
    r = make_replica(0)
    broken: Future[Batch] = Future()
    broken.set_exception(MemoryError("no room"))
    r.feed._submit = lambda request: broken
    r.feed.extend(r.leased(0))
    r.coordinator.n_items = 1
    with pytest.raises(MemoryError, match="no room"):
        r.run()
    assert r.feed.held() == ((0, 100),)
    assert not any(report.leaving for report in r.coordinator.reports)
    assert r.outcomes() == {}


def test_the_order_to_stop_ends_it_before_the_next_item(make_replica: MakeReplica) -> None:
    r = make_replica(3)
    r.coordinator.n_items = 0  # stop at the first report
    r.step.before = lambda step: stopped.wait(60)
    stopped = threading.Event()
    end = r.feed.end
    r.feed.end = lambda: (end(), stopped.set())  # type: ignore[method-assign,assignment]
    r.run()
    assert len(r.step.seen) <= 1
    assert len(r.outcomes()) == len(r.step.seen)
    held = [number for number, _ in r.coordinator.reports[-1].held]
    assert held == [0, 1, 2][len(r.step.seen) :]


# Progress and reports


def test_progress_smooths_the_pace() -> None:
    progress = Progress()
    assert progress.take() == ((), None, 0.0)
    progress.note_pace(2.0)
    assert progress.take() == ((), 2.0, 0.0)
    progress.note_pace(4.0)
    assert progress.take() == ((), pytest.approx(0.8 * 2.0 + 0.2 * 4.0), 0.0)


def test_the_time_waited_adds_up_and_is_taken_once() -> None:
    progress = Progress()
    progress.note_wait(2.5)
    progress.note_wait(0.25)
    assert progress.take() == ((), None, 2.75)
    progress.note_wait(1.0)
    assert progress.take()[2] == 1.0
    assert progress.take()[2] == 0.0


def test_outcomes_are_taken_once() -> None:
    progress = Progress()
    outcomes = [ItemOutcome(item=i, examples=1, losses={}) for i in range(2)]
    for outcome in outcomes:
        progress.add(outcome)
    assert progress.take()[0] == tuple(outcomes)
    assert progress.take()[0] == ()


@pytest.mark.parametrize("overlap", [True, False])
def test_the_time_waited_is_that_for_batches_and_for_nothing_else(
    overlap: bool, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    r = make_replica(0, n_push=2, overlap=overlap)
    submit = r.feed._submit

    class Late(Future[Batch]):
        def result(self, timeout: float | None = None) -> Batch:
            now[0] += 0.5
            return super().result(timeout)

    def late(request: BatchRequest) -> Future[Batch]:
        future = Late()
        future.set_result(submit(request).result())
        return future

    def grant() -> tuple[LeasedItem, ...]:
        now[0] += 64.0  # waiting for items is no waiting for data
        return r.leased(2)

    def compute(step: int) -> None:
        now[0] += 8.0

    r.feed._submit, r.step.before = late, compute
    r.feed.extend(r.leased(0, 1))
    r.coordinator.n_items, r.coordinator.grants = 3, [grant]
    r.run()
    assert sum(report.waiting_s for report in r.coordinator.reports) == 6 * 0.5


def test_reports_say_who_and_how_fast(make_replica: MakeReplica) -> None:
    r = make_replica(2, overlap=False)
    r.run()
    first, last = r.coordinator.reports[0], r.coordinator.reports[-1]
    assert {report.replica for report in r.coordinator.reports} == {0}
    assert first.host
    assert first.pid > 0
    assert set(first.held) <= {(0, 100), (1, 101)}
    assert last.seconds_per_item is not None
    assert last.seconds_per_item > 0
    assert [report.leaving for report in r.coordinator.reports[:-1]].count(True) == 0
