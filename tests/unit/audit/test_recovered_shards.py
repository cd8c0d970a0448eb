"""The audit of what real shards write when they die, go back to snapshots, and are followed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.audit import audit
from distbelief.config import AveragingConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import Manifest
from distbelief.items import ItemPlan
from distbelief.layout import Segment
from distbelief.observe.events import EventLog
from distbelief.runtime.snapshots import Progressed, Snapshots
from distbelief.server.account import accounted_by
from distbelief.server.applied import intersection
from distbelief.server.restore import Restore
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.services import TwinService
from distbelief.serving import Endpoint, Serving, write_serving
from distbelief.storage import LocalStorage, write_json
from distbelief.types import Push, PushStatus, ShardFile

N_SHARDS, SIZE = 2, 4
PLAN = ItemPlan(n_examples=25, batch_size=10, n_push=1, n_items=24)
SCHEDULE = Schedule(ScheduleConfig(lr=0.5, schedule="step", step_epochs=1, step_factor=0.5), PLAN)

Done = list[int]
"""The pushes of a shard in order, each by a number of its own."""


@dataclass
class Start:
    """One start of a shard; ``done`` by it and those that it took over from, from ``clock`` on."""

    shard: Shard
    done: Done
    clock: int
    synced: int = 0

    @property
    def path(self) -> Path:
        spec = self.shard.spec
        name = f"shard-{spec.index:05d}-of-{spec.n_shards:05d}.{spec.incarnation:04d}.jsonl"
        storage = spec.storage
        assert isinstance(storage, LocalStorage)
        return storage.path / "pushes" / name

    def note_synced(self) -> None:
        """All that its log has by now will be there whatever happens."""
        self.shard.state()
        self.synced = len(self.path.read_text().splitlines())

    def logged(self) -> Done:
        """The pushes that its log has."""
        pushes = [line for line in self.path.read_text().splitlines()[1:] if '"item"' in line]
        return self.done[self.clock : self.clock + len(pushes)]


@dataclass
class Fleet:
    """Shards, their twins, and what a supervisor does for them, without waiting."""

    storage: LocalStorage
    stack: ExitStack
    shards: list[Start] = field(default_factory=list)
    twins: dict[int, Start] = field(default_factory=dict)
    dead: list[Start] = field(default_factory=list)
    snapshots: dict[int, tuple[Manifest, list[Done]]] = field(default_factory=dict)
    n_pushes: int = 0
    n_epochs: int = 0
    open_until: int = 2 * PLAN.items_per_epoch
    """Items from there on have not been leased."""
    number: int = 0

    def __post_init__(self) -> None:
        config = TrainConfig(schedule=SCHEDULE.config).to_dict()
        record = {"config": config, "plan": asdict(PLAN), "incarnation": 1}
        write_json(self.storage, "config.json", {**record, "parameters": N_SHARDS * SIZE})
        self.events = EventLog(self.storage, 0.0)
        self.incarnations = [0] * N_SHARDS
        for index in range(N_SHARDS):
            self.shards.append(self.start(index, [], 0))
            self.shards[index].shard.load(torch.zeros(SIZE))
            self.tell("shard_started", self.shards[index], role="primary")
        self.snapshot()
        self.publish()

    def start(self, index: int, done: Done, clock: int, **fields: Any) -> Start:
        self.incarnations[index] += 1
        spec = ShardSpec(
            index=index,
            n_shards=N_SHARDS,
            begin=SIZE * index,
            end=SIZE * index + SIZE,
            segments=(Segment(0, SIZE, 1.0, 1.0),),
            layout="fingerprint",
            incarnation=self.incarnations[index],
            examples_per_item=PLAN.examples_per_item,
            total_examples=PLAN.total_examples,
            n_ports=2,
            optimizer=OptimizerConfig(),
            averaging=AveragingConfig(),
            storage=self.storage,
            **fields,
        )
        shard = self.stack.enter_context(Shard(spec, connect=self.connect))
        return Start(shard, list(done), clock)

    @contextmanager
    def connect(self, address: str) -> Iterator[TwinService]:
        yield self.twins[int(address)].shard

    def tell(self, kind: str, start: Start, **fields: Any) -> None:
        spec = start.shard.spec
        self.events.emit(kind, shard=spec.index, incarnation=spec.incarnation, **fields)

    def publish(self) -> None:
        self.number += 1

        def endpoint(start: Start) -> Endpoint:
            spec = start.shard.spec
            return Endpoint(spec.index, spec.begin, spec.end, spec.incarnation, "")

        serving = Serving(
            number=self.number,
            run=1,
            shards=tuple(endpoint(start) for start in self.shards),
            twins=tuple(endpoint(twin) for twin in self.twins.values()),
        )
        write_serving(self.storage, serving)

    def push(self, index: int, item: int) -> None:
        start = self.shards[index]
        spec = start.shard.spec
        push = Push(
            item=item,
            lease=item,
            replica=0,
            begin=spec.begin,
            incarnation=spec.incarnation,
            base=start.shard.version,
            rate=SCHEDULE.rate(item),
            examples=PLAN.item(item).n_examples,
            skipped=(),
            layout="fingerprint",
            gradient=torch.ones(SIZE),
        )
        if start.shard.push(push).status is PushStatus.APPLIED:
            self.n_pushes += 1
            start.done.append(self.n_pushes)
            if index in self.twins:
                self.twins[index].done.append(self.n_pushes)

    def work(self, index: int, n_items: int, n_left_out: int) -> None:
        """Some of the items that are the next on the shard, the later ones first."""
        state = self.shards[index].shard.state()
        missing = [gap for low, high in accounted_by(state).gaps(99) for gap in range(low, high)]
        for item in reversed(missing[n_left_out : n_left_out + n_items]):
            if item < min(self.open_until, PLAN.n_items):
                self.push(index, item)

    def observe(self) -> None:
        """As a coordinator does: what it is told is in the logs, and is told to all."""
        for start in self.shards:
            start.note_synced()
        done = intersection([accounted_by(start.shard.state()) for start in self.shards])
        finished = done.below // PLAN.items_per_epoch
        self.open_until = max(self.open_until, (finished + 2) * PLAN.items_per_epoch)
        self.n_epochs = min(self.n_epochs, finished)
        while self.n_epochs < finished:
            self.n_epochs += 1
            self.events.emit("epoch", epoch=self.n_epochs)

    def set_aside(self, item: int) -> None:
        for start in self.shards:
            start.shard.set_aside((item,), "its replica died 3 times")

    def snapshot(self) -> None:
        snapshots = Snapshots(
            self.storage,
            [start.shard for start in self.shards],
            layout="fingerprint",
            keep=9,
            pause_s=0.001,
            emit=self.events.emit,
        )
        manifest = snapshots.take(progressed, reason="due")
        self.snapshots[manifest.number] = manifest, [list(s.done) for s in self.shards]
        for start in self.shards:
            start.note_synced()

    def follow(self, index: int) -> None:
        """The shard gets a twin, if it has none."""
        if index not in self.twins:
            primary = self.shards[index]
            clock = primary.shard.version.clock
            self.twins[index] = self.start(index, primary.done, clock, twin=True)
            primary.shard.feed_twin(str(index))
            primary.note_synced()
            self.publish()

    def drop(self, index: int) -> None:
        """The shard's twin is lost."""
        if index in self.twins:
            self.shards[index].shard.release_twin()
            self.kill(self.twins.pop(index), "twin", 99)
            self.publish()

    def lose(self, index: int, n_unwritten: int, n_back: int) -> None:
        """The shard dies; its twin takes its place, or it goes on from one of its snapshots."""
        self.kill(self.shards[index], "primary", n_unwritten)
        if index in self.twins:
            twin = self.twins.pop(index)
            self.shards[index] = twin
            self.publish()
            twin.shard.promote()
            self.events.emit("recovered", what=f"shard {index}", how="twin")
            return
        number = sorted(self.snapshots)[-n_back:][0]
        manifest, done = self.snapshots[number]
        spec = self.shards[index].shard.spec
        restore = Restore(number, manifest.overlapping(spec.begin, spec.end))
        self.shards[index] = self.start(index, done[index], len(done[index]), restore=restore)
        self.tell("shard_started", self.shards[index], role="primary")
        self.publish()
        self.events.emit("recovered", what=f"shard {index}", how="snapshot", snapshot=number)

    def kill(self, start: Start, role: str, n_unwritten: int) -> None:
        """It ends, and the last lines of its log were never written."""
        start.shard.close()
        lines = start.path.read_text().splitlines(keepends=True)
        there = max(start.synced, 1, len(lines) - n_unwritten)
        start.path.write_text("".join(lines[:there]))
        self.dead.append(start)
        self.tell("shard_lost", start, role=role, cause="killed")

    def finish(self) -> None:
        """Every item that is missing anywhere is done there."""
        for index in range(N_SHARDS):
            for item in range(PLAN.n_items):
                self.push(index, item)
        write_json(self.storage, "summary.json", {"status": "finished"})

    def close(self) -> None:
        for start in (*self.shards, *self.twins.values()):
            start.shard.close()
        self.events.close()

    def forgotten(self) -> int:
        """Pushes that some log has, and no shard any more."""
        logged = {push for start in (*self.dead, *self.shards) for push in start.logged()}
        return len(logged - {push for start in self.shards for push in start.done})


def progressed(files: Sequence[ShardFile]) -> Progressed:
    return Progressed(examples_applied=0, elapsed_s=1.0)


SHARD = st.integers(0, N_SHARDS - 1)
STEPS = st.one_of(
    st.tuples(st.just("work"), SHARD, st.integers(1, 6), st.integers(0, 2)),
    st.tuples(st.just("work"), SHARD, st.integers(1, 6), st.integers(0, 2)),
    st.tuples(st.just("observe")),
    st.tuples(st.just("set_aside"), st.integers(0, PLAN.n_items - 1)),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("follow"), SHARD),
    st.tuples(st.just("drop"), SHARD),
    st.tuples(st.just("lose"), SHARD, st.integers(0, 4), st.integers(1, 3)),
    st.tuples(st.just("lose"), SHARD, st.integers(0, 4), st.integers(1, 3)),
)


@settings(deadline=None, max_examples=20)
@given(st.lists(STEPS, min_size=5, max_size=25), st.booleans())
def test_whatever_dies_the_logs_are_clean(steps: list[tuple[Any, ...]], finished: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        fleet = Fleet(LocalStorage(Path(folder)), stack)
        for step, *arguments in steps:
            getattr(fleet, step)(*arguments)
            if step == "lose":
                assert audit(folder).counter_example is None  # while all goes on
        if finished:
            fleet.finish()
        fleet.close()
        found = audit(folder)
        assert found.counter_example is None
        assert found.pushes == sum(start.shard.version.clock for start in fleet.shards)
        assert found.twins == len(fleet.twins)
        assert found.forgotten == fleet.forgotten()
        if finished:
            assert found.epochs_finished == PLAN.n_epochs


def test_a_push_taken_out_of_any_log_that_counts_is_found(tmp_path: Path) -> None:
    """Of a restart, of a takeover, of twins; and after the last one whose loss would be none."""
    with ExitStack() as stack:
        fleet = Fleet(LocalStorage(tmp_path), stack)
        for item in (0, 1):
            fleet.push(0, item)
            fleet.push(1, item)
        fleet.snapshot()
        fleet.follow(1)
        fleet.push(0, 2)
        fleet.push(1, 3)
        fleet.lose(0, 0, 1)
        fleet.lose(1, 0, 1)
        fleet.follow(1)
        fleet.push(1, 5)
        fleet.finish()
        fleet.close()
    clean = audit(tmp_path)
    assert (clean.counter_example, clean.items, clean.twins) == (None, PLAN.n_items, 1)
    assert [(one.shard, one.incarnation, one.pushes) for one in clean.redone] == [(0, 1, 1)]
    harmless = {"shard-00000-of-00002.0001.jsonl", "shard-00001-of-00002.0001.jsonl"}
    paths = sorted((tmp_path / "pushes").iterdir())
    assert len(paths) == 5
    for path in paths:
        lines = path.read_text().splitlines(keepends=True)
        for number in range(1, len(lines)):
            path.write_text("".join(lines[:number] + lines[number + 1 :]))
            # What a shard did last before it died: nothing rests on it.
            last = path.name in harmless and number == len(lines) - 1
            assert audit(tmp_path).clean is last, (path.name, number)
        path.write_text("".join(lines))
    assert audit(tmp_path).clean
