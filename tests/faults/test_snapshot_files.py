"""Every call of the file seam failing while a snapshot is written, and files that are damaged."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.audit import audit
from distbelief.config import AveragingConfig, OptimizerConfig, TrainConfig
from distbelief.coordinator.snapshots import Manifest, Pace
from distbelief.errors import DataError
from distbelief.faults.files import FULL, READ_ONLY, FaultyStorage, FileFault
from distbelief.faults.points import InjectedError
from distbelief.layout import Segment
from distbelief.observe.events import read_events
from distbelief.observe.report import Report
from distbelief.observe.view import Lines
from distbelief.runtime import regular_snapshots
from distbelief.runtime.beginning import begin
from distbelief.runtime.claim import claimed
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import prepare
from distbelief.runtime.regular_snapshots import RegularSnapshots
from distbelief.runtime.runs import Resume
from distbelief.runtime.signals import Stop
from distbelief.runtime.snapshots import Progressed, Snapshots, manifests, numbers
from distbelief.runtime.supervisor import Supervisor
from distbelief.server.pushlog import LogEntry, read_log
from distbelief.server.restore import Restore
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import check
from distbelief.storage import LocalStorage, Storage
from distbelief.types import Push, PushStatus, ShardFile, Version

N_SHARDS, SIZE = 2, 4
LONG_S = 600.0


def spec_of(index: int, storage: Storage, incarnation: int = 1, **fields: Any) -> ShardSpec:
    return ShardSpec(
        index=index,
        n_shards=N_SHARDS,
        begin=SIZE * index,
        end=SIZE * (index + 1),
        segments=(Segment(0, SIZE, 1.0, 1.0),),
        layout="fingerprint",
        incarnation=incarnation,
        examples_per_item=10,
        total_examples=1000,
        n_ports=2,
        optimizer=OptimizerConfig(momentum=0.0, weight_decay=0.0, kernel="unfused"),
        averaging=AveragingConfig(average="none"),
        storage=storage,
        **fields,
    )


class Run:
    """Two shards, and snapshots of them, of which the newest alone is kept."""

    def __init__(self, storage: Storage, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.n_items = 0
        self.taking = Snapshots(
            storage,
            shards,
            layout="fingerprint",
            keep=1,
            pause_s=LONG_S,
            emit=self.emit,
        )
        self.snapshots = RegularSnapshots(self.taking, Pace(1, 1.0), self.progressed, self.emit)

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    def take(self) -> Manifest:
        return self.taking.take(self.progressed, reason="due")

    def progressed(self, files: Sequence[ShardFile]) -> Progressed:
        return Progressed(examples_applied=10 * self.n_items, elapsed_s=1.0)

    def told(self) -> list[str]:
        """What the events say of a snapshot's failure, or of what is left of one."""
        kinds = ("snapshot_failed", "snapshot_not_removed")
        return [str(fields["cause"]) for kind, fields in self.events if kind in kinds]

    def train(self, n_items: int) -> None:
        """Each item moves every parameter by one."""
        for item in range(self.n_items, self.n_items + n_items):
            for shard in self.shards:
                reply = shard.push(
                    Push(
                        item=item,
                        lease=item + 1,
                        replica=0,
                        begin=shard.spec.begin,
                        incarnation=1,
                        base=Version(1, item),
                        rate=1.0,
                        examples=10,
                        skipped=(),
                        layout="fingerprint",
                        gradient=torch.full((SIZE,), -1.0),
                    )
                )
                assert reply.status is PushStatus.APPLIED
        self.n_items += n_items


@contextmanager
def run_at(path: Path) -> Iterator[tuple[LocalStorage, FaultyStorage, Run]]:
    """A run of 2 items with a good snapshot, and 3 items that came after it."""
    inner = LocalStorage(path)
    storage = FaultyStorage(inner)
    storage.write("config.json", b'{"incarnation": 1}')
    with Shard(spec_of(0, storage)) as first, Shard(spec_of(1, storage)) as second:
        for shard in (first, second):
            shard.load(torch.zeros(SIZE))
        run = Run(storage, (first, second))
        run.train(2)
        assert run.snapshots.try_one("due")
        run.train(3)
        run.events.clear()
        try:
            yield inner, storage, run
        finally:
            storage.change(())


def loaded_items(storage: Storage, incarnation: int) -> int:
    """How many items are in the newest snapshot, once it has been loaded into new shards."""
    newest = manifests(storage)[0][-1]
    found: set[Any] = set()
    for index in range(N_SHARDS):
        files = newest.overlapping(SIZE * index, SIZE * (index + 1))
        restore = Restore(newest.number, files)
        with Shard(spec_of(index, storage, incarnation, restore=restore)) as shard:
            values = torch.empty(SIZE)
            shard.fetch(values, begin=SIZE * index)
            (applied,) = shard.state().applied
            found.add((applied, *values.tolist()))
    (((first, n_items), *parameters),) = found
    assert (first, parameters) == (0, [float(n_items)] * SIZE)
    return int(n_items)


def go_on(storage: Storage) -> int:
    """Another start of the run takes a snapshot, which loads; returns its number."""
    newest = manifests(storage)[0][-1]
    restore = [
        Restore(newest.number, newest.overlapping(SIZE * index, SIZE * (index + 1)))
        for index in range(N_SHARDS)
    ]
    with (
        Shard(spec_of(0, storage, 5, restore=restore[0])) as first,
        Shard(spec_of(1, storage, 5, restore=restore[1])) as second,
    ):
        manifest = Run(storage, (first, second)).take()
    assert loaded_items(storage, 6) == manifest.files[0].state.clock
    return manifest.number


def logged_items(storage: Storage) -> list[list[int]]:
    """Items of each shard's push log, in its order."""
    names = [name for name in storage.logs("pushes") if name.endswith(".0001.jsonl")]
    assert len(names) == N_SHARDS
    entries = [list(read_log(storage, name)[1]) for name in names]
    return [[e.item for e in each if isinstance(e, LogEntry)] for each in entries]


@dataclass(frozen=True)
class Call:
    """One call of the file seam: the nth of its kind for that file."""

    operation: Any
    name: str
    nth: int

    def fault(self, **fields: Any) -> FileFault:
        return FileFault(operations=(self.operation,), names=self.name, nth=self.nth, **fields)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """All calls of the file seam that a snapshot makes, from its beginning to its end."""
    with run_at(tmp_path_factory.mktemp("dry")) as (inner, storage, run):
        before = len(storage.calls)
        assert run.snapshots.try_one("due")
        made = storage.calls[before:]
        assert (run.told(), loaded_items(inner, 2)) == ([], 5)
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for operation, name in made:
        counts[operation, name] += 1
        found.append(Call(operation, name, counts[operation, name]))
    operations = {call.operation for call in found}
    assert {"write", "log.sync", "log.flush", "read", "names", "remove"} <= operations
    assert len(found) >= 16
    return found


def after_the_fault(inner: Storage, storage: FaultyStorage, run: Run) -> None:
    """The last good snapshot loads, training goes on, and with room the next one is whole."""
    assert storage.n_injected > 0
    assert loaded_items(inner, 2) in (2, 5)
    run.train(2)
    assert all(shard.failure is None for shard in run.shards)
    storage.change(())
    assert run.snapshots.try_one("due")
    assert run.snapshots.newest is not None
    assert "failed" not in run.snapshots.newest
    assert loaded_items(inner, 3) == 7
    assert logged_items(inner) == [list(range(7))] * N_SHARDS


@pytest.mark.parametrize("torn", [False, True])
def test_whichever_call_fails_the_last_snapshot_loads_and_training_goes_on(
    torn: bool, calls: list[Call], tmp_path: Path
) -> None:
    outcomes = Counter[bool]()
    for at, call in enumerate(calls):
        if torn and call.operation != "write":
            continue
        with run_at(tmp_path / str(at)) as (inner, storage, run):
            storage.change([call.fault(torn=torn)])
            taken = run.snapshots.try_one("due")
            outcomes[taken] += 1
            newest = run.snapshots.newest
            assert newest is not None
            told = run.told()
            if not taken:
                assert loaded_items(inner, 4) == 2, call
                assert newest["failed"] == told[0]
            if call.operation != "log.flush":  # lines wait for the sync that comes next
                assert len(told) == 1, call
                assert "Input/output error" in told[0]
            after_the_fault(inner, storage, run)
    assert outcomes[False] >= 3
    assert torn or outcomes[True] >= 3  # it was whole, and what was left could not be removed


@pytest.mark.parametrize("fault", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_whenever_the_disk_becomes_full_or_read_only_training_goes_on(
    fault: FileFault, calls: list[Call], tmp_path: Path
) -> None:
    n_calls = sum(call.operation in fault.operations for call in calls)
    assert n_calls >= 7
    for nth in range(1, n_calls + 1):
        with run_at(tmp_path / str(nth)) as (inner, storage, run):
            storage.change([replace(fault, nth=nth)])
            run.snapshots.try_one("due")
            run.train(1)
            assert not run.snapshots.try_one("due")
            assert run.snapshots.newest is not None
            reason = "No space left" if fault is FULL else "Read-only file system"
            assert reason in run.snapshots.newest["failed"]
            assert reason in run.told()[-1]
            assert loaded_items(inner, 4) in (2, 5)
            run.train(1)
            storage.change(())
            assert run.snapshots.try_one("due")
            assert loaded_items(inner, 3) == 7
            assert logged_items(inner) == [list(range(7))] * N_SHARDS


@pytest.mark.parametrize("torn", [False, True])
def test_whichever_call_a_process_dies_at_the_last_snapshot_loads(
    torn: bool, calls: list[Call], tmp_path: Path
) -> None:
    n_damaged = 0
    for at, call in enumerate(calls):
        if torn and call.operation != "write":
            continue
        with run_at(tmp_path / str(at)) as (inner, storage, run):
            storage.change([call.fault(torn=torn, dies=True)])
            try:
                # Where it is the shard's writer that dies, its caller is told so.
                assert not run.snapshots.try_one("due")
                assert call.operation == "log.flush"
            except InjectedError:
                pass
            last = max(numbers(inner))
            damaged = [error for error in manifests(inner)[1].values() if error is not None]
            n_damaged += len(damaged)
            assert loaded_items(inner, 2) in (2, 5)
            assert all("manifest.json" in error.path for error in damaged)
            assert go_on(inner) == 1 + last  # no number is given twice
    assert n_damaged == (1 if torn else 0)


# Whole runs


FILLING = ("snapshots/*", "pushes/*", "events.jsonl")
"""What a run writes while it trains."""


class Watched(Lines):
    """Does something once so many examples have been applied, and once something was said."""

    def __init__(
        self,
        at: tuple[int, Callable[[], None]] = (10**9, lambda: None),
        on_words: tuple[str, Callable[[], None]] = ("", lambda: None),
    ) -> None:
        super().__init__(lambda line: None)
        self.stop = Stop()
        self.said: list[str] = []
        self.at, self.on_words = at, on_words

    def say(self, line: str) -> None:
        self.said.append(line)
        words, act = self.on_words
        if words and words in line:
            self.on_words = ("", act)
            act()

    def show(self, report: Report, *, last: bool = False) -> None:
        examples, act = self.at
        if report.examples_applied >= examples:
            self.at = (10**9, act)
            act()


@pytest.mark.parametrize("fault", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_a_run_whose_disk_becomes_full_goes_on_and_its_user_is_told(
    fault: FileFault,
    tiny: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(regular_snapshots, "RETRY_S", 0.01)
    prepared = prepare(tiny(epochs=24, snapshot_every=90, tensorboard=False))
    inner = prepared.storage
    storage = FaultyStorage(inner)
    failed = "a snapshot failed, and is tried again: "
    view = Watched(
        at=(1, lambda: storage.change([replace(fault, names=names) for names in FILLING])),
        on_words=(failed, lambda: storage.change(())),
    )
    with claimed(inner):
        faulty = replace(prepared, storage=storage)
        begin(faulty)
        with LocalWorld(faulty, n_loaders=0) as world:
            result = Supervisor(world, faulty, view.stop, view).run()
    assert (result["status"], result["examples_applied"]) == ("finished", 2160)
    (told,) = [line for line in view.said if line.startswith(failed)]
    reason = "No space left on device" if fault is FULL else "Read-only file system"
    assert reason in told
    assert storage.n_injected > 0
    events = read_events(inner)
    kinds = [event["kind"] for event in events if event["kind"].startswith("snapshot")]
    assert "snapshot" in kinds[kinds.index("snapshot_failed") :]
    causes = [event["cause"] for event in events if event["kind"] == "snapshot_failed"]
    assert all(reason in cause for cause in causes)
    found = audit(inner.url)
    assert found.clean, found.counter_example
    assert found.examples == 2160
    newest = manifests(inner)[0][-1]
    assert newest.examples_applied == 2160
    for file in newest.files:
        check(inner, newest.number, file)


Damage = Callable[[Path, Path], Path]


def flipped(name: str, at: float) -> Damage:
    """One bit of a file, at that share of its length."""

    def damage(newest: Path, before: Path) -> Path:
        path = newest / name
        content = bytearray(path.read_bytes())
        content[min(len(content) - 1, int(at * len(content)))] ^= 0x10
        path.write_bytes(content)
        return path

    return damage


def cut(name: str, left: Callable[[int], int]) -> Damage:
    """A file of another length."""

    def damage(newest: Path, before: Path) -> Path:
        path = newest / name
        content = path.read_bytes()
        path.write_bytes((content + b"\0")[: left(len(content))])
        return path

    return damage


def of_the_one_before(name: str) -> Damage:
    def damage(newest: Path, before: Path) -> Path:
        shutil.copy(before / name, newest / name)
        return newest / name

    return damage


def of_another_shard(newest: Path, before: Path) -> Path:
    shutil.copy(newest / SHARD.replace("00001-", "00000-", 1), newest / SHARD)
    return newest / SHARD


def missing(name: str) -> Damage:
    def damage(newest: Path, before: Path) -> Path:
        (newest / name).unlink()
        return newest / name

    return damage


SHARD = "shard-00001-of-00002.safetensors"
MANIFEST = "manifest.json"

DAMAGES: dict[str, Damage] = {
    **{f"bit of the {w}": flipped(SHARD, x) for w, x in (("head", 0), ("middle", 0.5), ("end", 1))},
    **{f"bit of the manifest at {x}": flipped(MANIFEST, x) for x in (0, 0.3, 0.6, 0.9)},
    "empty": cut(SHARD, lambda n: 0),
    "half": cut(SHARD, lambda n: n // 2),
    "a byte short": cut(SHARD, lambda n: n - 1),
    "a byte long": cut(SHARD, lambda n: n + 1),
    "empty manifest": cut(MANIFEST, lambda n: 0),
    "half a manifest": cut(MANIFEST, lambda n: n // 2),
    "another snapshot's file": of_the_one_before(SHARD),
    "another snapshot's manifest": of_the_one_before(MANIFEST),
    "another shard's file": of_another_shard,
    "no file": missing(SHARD),
    "no manifest": missing(MANIFEST),
}


def test_a_damaged_snapshot_is_refused_by_the_files_name_and_the_one_before_is_offered(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny(epochs=40, snapshot_every=10**6, replicas=1, tensorboard=False)
    prepared = prepare(config)
    view = Watched()
    view.at = (100, view.stop.event.set)
    with claimed(prepared.storage):
        begin(prepared)
        with LocalWorld(prepared, n_loaders=0) as world:
            assert Supervisor(world, prepared, view.stop, view).run()["status"] == "interrupted"
    before, newest = manifests(prepared.storage)[0]  # of its start, and of its end
    assert 0 == before.examples_applied < newest.examples_applied
    for at, (what, damage) in enumerate(DAMAGES.items()):
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(prepared.storage.url, copy)
        path = damage(*(copy / "snapshots" / f"{m.number:06d}" for m in (newest, before)))
        for wanted in (None, newest.number):
            with pytest.raises(DataError) as caught:
                prepare(config, resume=Resume(str(copy), wanted))
            assert caught.value.path == str(path), what
            offer = f"--resume-snapshot {before.number}"
            assert caught.value.problem.endswith(offer), (what, caught.value.problem)
        resumed = prepare(config, resume=Resume(str(copy), before.number)).resumed
        assert resumed == before
