"""The audit of a run that goes on meanwhile, or is just being gone on with."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from distbelief.audit import audit
from distbelief.audit import history as module
from distbelief.config import ScheduleConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.items import ItemPlan
from distbelief.observe.events import EventLog
from distbelief.runtime.beginning import begin
from distbelief.runtime.prepare import Prepared, prepare
from distbelief.runtime.runs import Resume
from distbelief.runtime.snapshots import Progressed, Snapshots
from distbelief.server.pushlog import LogHeader
from distbelief.server.shard import Shard
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import Push, PushStatus, ShardFile, Version

N_EPOCHS = 60
PLAN = ItemPlan(n_examples=25, batch_size=10, n_push=1, n_items=3 * N_EPOCHS)
SCHEDULE = ScheduleConfig(lr=0.5, schedule="step", step_epochs=1, step_factor=0.99)


class Run:
    """Two shards of four elements, to which a run's items are pushed epoch by epoch."""

    def __init__(self, storage: Storage, shards: Sequence[Shard], make: Callable[..., Push]):
        self.storage, self.shards, self.make_push = storage, shards, make
        self.schedule = Schedule(SCHEDULE, PLAN)
        self.events = EventLog(storage, 0.0)
        self.snapshots = Snapshots(
            storage,
            shards,
            layout="fingerprint",
            keep=2,
            pause_s=600.0,
            emit=self.events.emit,
        )

    def epoch(self, number: int) -> None:
        """Each shard has the items of an epoch in an order of its own; then it is called done."""
        items = [*range(3 * number, 3 * number + 3)]
        for index, shard in enumerate(self.shards):
            for item in random.Random(10 * number + index).sample(items, 3):
                push = self.make_push(
                    item,
                    begin=4 * index,
                    base=Version(1, 0),
                    rate=self.schedule.rate(item),
                    examples=PLAN.item(item).n_examples,
                )
                assert shard.push(push).status is PushStatus.APPLIED
        for shard in self.shards:
            shard.state()
        self.events.emit("epoch", epoch=number + 1)
        if number % 4 == 0:
            self.snapshots.take(progressed, reason="due")


def progressed(files: Sequence[ShardFile]) -> Progressed:
    return Progressed(examples_applied=0, elapsed_s=1.0)


@pytest.fixture
def run(
    start_shard: Callable[..., Shard], make_push: Callable[..., Push], tmp_path: Path
) -> Iterator[Run]:
    storage = LocalStorage(tmp_path)
    config = TrainConfig(schedule=SCHEDULE).to_dict()
    record = {"config": config, "plan": asdict(PLAN), "parameters": 8, "incarnation": 1}
    write_json(storage, "config.json", record)
    shards = [start_shard(4, index=index, n_shards=2, begin=4 * index) for index in (0, 1)]
    found = Run(storage, shards, make_push)
    yield found
    found.events.close()


def test_audits_of_a_run_that_goes_on_are_all_clean(run: Run) -> None:
    ended = threading.Event()

    def train() -> None:
        try:
            for number in range(N_EPOCHS):
                run.epoch(number)
        finally:
            ended.set()

    audits = 0
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        while not ended.is_set():
            assert audit(run.storage.url).counter_example is None
            audits += 1
        training.result(60)
    assert audits > 1
    write_json(run.storage, "summary.json", {"status": "finished"})
    found = audit(run.storage.url)
    assert found.counter_example is None
    assert (found.items, found.epochs_finished) == (3 * N_EPOCHS, N_EPOCHS)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_happens_while_a_log_is_read_is_no_contradiction(
    when: str, shard: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several epochs and snapshots, all while the log of one shard is read."""
    run.epoch(0)
    read, epochs = module.read_log, iter(range(1, 9))

    def slow(storage: Storage, name: str) -> tuple[LogHeader, object]:
        if name.startswith(f"shard-{shard:05d}") and when == "before":
            for number in epochs:
                run.epoch(number)
        header, entries = read(storage, name)
        found = list(entries)
        if name.startswith(f"shard-{shard:05d}"):
            for number in epochs:
                run.epoch(number)
        return header, iter(found)

    monkeypatch.setattr(module, "read_log", slow)
    assert audit(run.storage.url).counter_example is None
    assert next(epochs, None) is None


# Going on with a finished run, for longer


def push_all(prepared: Prepared, shard: Shard, items: Sequence[int]) -> None:
    spec = shard.spec
    for item in items:
        push = Push(
            item=item,
            lease=item,
            replica=0,
            begin=spec.begin,
            incarnation=spec.incarnation,
            base=shard.version,
            rate=prepared.schedule.rate(item),
            examples=prepared.plan.item(item).n_examples,
            skipped=(),
            layout=spec.layout,
            gradient=torch.zeros(spec.size),
        )
        assert shard.push(push).status is PushStatus.APPLIED
    shard.state()


def finish(config: TrainConfig) -> Prepared:
    """A run of two shards from its start to its end."""
    prepared = prepare(config)
    begin(prepared)
    storage, plan = prepared.storage, prepared.plan
    events = EventLog(storage, 0.0)
    with ExitStack() as stack:
        shards = [stack.enter_context(Shard(prepared.shard_spec(index))) for index in (0, 1)]
        for shard in shards:
            shard.load(prepared.initial[shard.spec.begin : shard.spec.end])
            push_all(prepared, shard, range(plan.n_items))
        for number in range(plan.n_epochs):
            events.emit("epoch", epoch=number + 1)
        Snapshots(
            storage,
            shards,
            layout=prepared.layout.fingerprint,
            keep=2,
            pause_s=600.0,
            emit=events.emit,
        ).take(
            lambda files: Progressed(examples_applied=plan.total_examples, elapsed_s=1.0),
            reason="end",
        )
    events.emit("end", status="finished")
    events.close()
    summary = {"status": "finished", "examples_applied": plan.total_examples}
    write_json(storage, "summary.json", summary)
    return prepared


@pytest.mark.parametrize("n_shards", [2, 3])
def test_a_finished_run_that_is_trained_for_longer_is_clean_at_every_moment(
    n_shards: int, tiny: Callable[..., TrainConfig]
) -> None:
    first = finish(tiny(shards=2, replicas=1))
    url, n_items = first.storage.url, first.plan.n_items
    whole = audit(url)
    assert (whole.counter_example, whole.items) == (None, n_items)
    longer = tiny(shards=n_shards, replicas=1, epochs=5)
    prepared = prepare(longer, resume=Resume(url))
    begin(prepared)
    found = audit(url)
    assert (found.counter_example, found.items, found.n_shards) == (None, n_items, 2)
    with ExitStack() as stack:
        shards = []
        for index in range(n_shards):
            shards.append(stack.enter_context(Shard(prepared.shard_spec(index))))
            found = audit(url)
            assert (found.counter_example, found.items) == (None, n_items)
        assert found.n_shards == n_shards
        for done, shard in enumerate(shards, start=1):
            push_all(prepared, shard, range(n_items, n_items + 4))
            found = audit(url)
            items = n_items + (4 if done == n_shards else 0)
            assert (found.counter_example, found.items) == (None, items)
