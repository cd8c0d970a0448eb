"""Snapshots of real shards: even if their items meet in time, kept as told, never half."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import (
    DataError,
    RunError,
    ShardRefusedError,
    SupersededError,
    TransportError,
)
from distbelief.faults.files import FaultyStorage, FileFault
from distbelief.runtime import snapshots as module
from distbelief.runtime.snapshots import Progressed, Snapshots, manifests, numbers, read_manifest
from distbelief.server.pause import Gate, Pause
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import read_vector
from distbelief.services import ShardService
from distbelief.serving import Serving, write_serving
from distbelief.storage import Storage
from distbelief.types import Intervals, Push, PushStatus, ShardFile, ShardState, Version

MakePush = Callable[..., Push]
LONG_S = 600.0


def progressed(files: Sequence[ShardFile]) -> Progressed:
    examples = min(file.state.examples for file in files)
    return Progressed(examples_applied=examples, elapsed_s=2.5, losses={"loss": 0.5})


@dataclass
class Run:
    """Shards of four elements each, and their snapshots."""

    storage: Storage
    shards: list[Shard]
    make_push: MakePush
    events: list[dict[str, Any]] = field(default_factory=list)

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def snapshots(
        self,
        *,
        keep: int = 2,
        pause_s: float = LONG_S,
        services: Sequence[ShardService] | None = None,
        **changes: Any,
    ) -> Snapshots:
        return Snapshots(
            self.storage,
            self.shards if services is None else services,
            layout="fingerprint",
            keep=keep,
            pause_s=pause_s,
            emit=self.emit,
            **changes,
        )

    def push(self, shard: int, item: int, value: float = -1.0) -> PushStatus:
        push = self.make_push(item, value, begin=4 * shard)
        return self.shards[shard].push(push).status

    def push_all(self, *items: int) -> None:
        for item in items:
            for shard in range(len(self.shards)):
                self.push(shard, item)


@pytest.fixture
def start(
    make_spec: Callable[..., ShardSpec], make_push: MakePush, storage: Storage
) -> Iterator[Callable[..., Run]]:
    """Starts shards that hold zeros."""
    with ExitStack() as stack:

        def make(n_shards: int = 2, **fields: Any) -> Run:
            shards = []
            for index in range(n_shards):
                spec = make_spec(
                    4, begin=4 * index, index=index, n_shards=n_shards, storage=storage, **fields
                )
                shards.append(stack.enter_context(Shard(spec)))
                shards[-1].load(torch.zeros(4))
            return Run(storage, shards, make_push)

        yield make


Start = Callable[..., Run]


def test_shards_that_stand_alike_are_saved_even(start: Start) -> None:
    run = start(3)
    run.push_all(0, 2)
    run.shards[1].set_aside((5,), "norm")
    for shard in (0, 2):
        run.push(shard, 5)
    manifest = run.snapshots().take(progressed, reason="due")
    assert (manifest.number, manifest.even, manifest.n_shards) == (0, True, 3)
    assert (manifest.layout, manifest.n_parameters) == ("fingerprint", 12)
    assert (manifest.examples_applied, manifest.elapsed_s) == (20, 2.5)
    assert (manifest.losses, manifest.validation) == ({"loss": 0.5}, None)
    assert [file.state.shard for file in manifest.files] == [0, 1, 2]
    assert read_manifest(run.storage, 0) == manifest
    whole = read_vector(run.storage, 0, manifest.files)
    assert whole.tolist() == [3.0] * 4 + [2.0] * 4 + [3.0] * 4
    (event,) = run.events
    assert (event["kind"], event["number"], event["reason"]) == ("snapshot", 0, "due")
    assert (event["even"], event["examples_applied"]) == (True, 20)
    assert event["nbytes"] == sum(file.nbytes for file in manifest.files)
    assert event["pause_seconds"] >= 0.0
    assert run.push(0, 7) is PushStatus.APPLIED  # the pause is over


def test_a_snapshot_of_nothing(start: Start) -> None:
    manifest = start(2).snapshots().take(progressed, reason="start")
    assert (manifest.even, manifest.examples_applied) == (True, 0)


def test_the_manifest_comes_last(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(2)
    order: list[str] = []
    write = type(run.storage).write

    def told(storage: Storage, name: str, *parts: bytes) -> None:
        write(storage, name, *parts)  # type: ignore[arg-type]
        order.append(name)

    monkeypatch.setattr(type(run.storage), "write", told)
    run.snapshots().take(progressed, reason="due")
    names = [name for name in order if name.startswith("snapshots/")]
    assert sorted(names[:2]) == [
        f"snapshots/000000/shard-0000{shard}-of-00002.safetensors" for shard in (0, 1)
    ]
    assert names[2:] == ["snapshots/000000/manifest.json"]


def test_an_item_that_is_under_way_makes_it_even(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard has an item that the other has not: the other waits for it, and takes no more."""
    run = start(2)
    run.push_all(0)
    run.push(0, 1)
    begun, held = threading.Semaphore(0), threading.Semaphore(0)
    begin, wait = Gate.begin, Pause.wait

    def watched_begin(gate: Gate, pause: Pause) -> None:
        begin(gate, pause)
        if pause.admitted:
            begun.release()

    def watched_wait(pause: Pause) -> None:
        held.release()
        wait(pause)

    monkeypatch.setattr(Gate, "begin", watched_begin)
    monkeypatch.setattr(Pause, "wait", watched_wait)
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(run.snapshots().take, progressed, reason="due")
        assert begun.acquire(timeout=60)  # shard 1 lacks item 1
        later = pool.submit(run.push, 1, 2)
        assert held.acquire(timeout=60)
        assert run.push(1, 1) is PushStatus.APPLIED
        manifest = taking.result(60)
        assert later.result(60) is PushStatus.APPLIED
    assert manifest.even
    assert [file.state.applied for file in manifest.files] == 2 * [((0, 2),)]


def test_after_the_deadline_it_is_uneven(start: Start) -> None:
    run = start(2)
    run.push_all(0)
    run.push(0, 1)
    manifest = run.snapshots(pause_s=0.01).take(progressed, reason="due")
    assert not manifest.even
    assert [file.state.applied for file in manifest.files] == [((0, 2),), ((0, 1),)]
    assert read_manifest(run.storage, 0) == manifest
    assert not run.events[0]["even"]
    assert run.push(1, 1) is PushStatus.APPLIED


def test_what_one_has_set_aside_the_others_wait_for_too(start: Start) -> None:
    run = start(2)
    run.shards[0].set_aside((0,), "norm")
    run.push(1, 0)
    assert run.snapshots().take(progressed, reason="due").even
    run.shards[0].set_aside((1,), "norm")
    assert not run.snapshots(pause_s=0.01).take(progressed, reason="due").even


def test_pushes_from_all_sides_and_snapshots_meanwhile(
    start: Start, in_threads: Callable[..., list[Any]]
) -> None:
    """Two replicas push every item to both shards; each snapshot is even, and whole."""
    run = start(2, n_ports=4)
    n_items, n_snapshots = 40, 4
    snapshots = run.snapshots(keep=n_snapshots)
    ended = threading.Event()

    def replica(number: int) -> None:
        for item in range(number, n_items, 2):
            for shard in (0, 1):
                run.push(shard, item)

    def both() -> None:
        try:
            in_threads([lambda: replica(0), lambda: replica(1)])
        finally:
            ended.set()

    def take() -> list[Manifest]:
        return [snapshots.take(progressed, reason="due") for _ in range(n_snapshots)]

    _, taken = in_threads([both, take])
    for manifest in taken:
        assert manifest.even
        first, second = manifest.files
        assert first.state.applied == second.state.applied
        whole = read_vector(run.storage, manifest.number, manifest.files)
        assert whole.tolist() == [float(first.state.clock)] * 8


# Numbers, and what is removed


def test_the_newest_are_kept(start: Start) -> None:
    run = start(2)
    snapshots = run.snapshots(keep=2)
    for item in range(4):
        run.push_all(item)
        snapshots.take(progressed, reason="due")
    found, broken = manifests(run.storage)
    assert ([m.number for m in found], broken) == ([2, 3], {})
    assert numbers(run.storage) == [2, 3]
    assert run.storage.names("snapshots") == ["000002", "000003"]


def test_the_newest_even_one_stays_however_old(start: Start) -> None:
    run = start(2)
    snapshots = run.snapshots(keep=2, pause_s=0.01)
    for item in range(2):
        run.push_all(item)
        assert snapshots.take(progressed, reason="due").even
    for item in range(2, 6):
        run.push(0, item)
        assert not snapshots.take(progressed, reason="due").even
    assert numbers(run.storage) == [1, 4, 5]


@pytest.mark.parametrize("finished", [True, False])
def test_numbers_are_never_used_again(finished: bool, start: Start) -> None:
    run = start(1)
    for _ in range(3):
        run.snapshots().take(progressed, reason="due")
    name = "manifest.json" if finished else "shard-00000-of-00001.safetensors"
    run.storage.write(f"snapshots/000041/{name}", b"{}")
    assert run.snapshots().take(progressed, reason="due").number == 42


def test_what_was_never_finished_goes_once_a_newer_one_is_whole(start: Start) -> None:
    run = start(1)
    run.storage.write("snapshots/000000/shard-00000-of-00001.safetensors", b"half")
    run.storage.write("snapshots/000002/shard-00000-of-00001.safetensors", b"half")
    assert numbers(run.storage) == [0, 2]
    snapshots = run.snapshots()
    assert snapshots.take(progressed, reason="due").number == 3
    assert numbers(run.storage) == [3]


def test_other_names_in_the_folder_are_left_alone(start: Start) -> None:
    run = start(1)
    run.storage.write("snapshots/notes.txt", b"mine")
    run.storage.write("snapshots/old-000000/manifest.json", b"{}")
    assert numbers(run.storage) == []
    for number in range(3):
        assert run.snapshots().take(progressed, reason="due").number == number
    assert run.storage.names("snapshots") == ["000001", "000002", "notes.txt", "old-000000"]


def test_of_one_that_goes_the_manifest_goes_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(1)
    removed: list[str] = []
    remove = type(run.storage).remove

    def told(storage: Storage, name: str) -> None:
        removed.append(name)
        remove(storage, name)

    monkeypatch.setattr(type(run.storage), "remove", told)
    snapshots = run.snapshots(keep=2)
    for _ in range(3):
        snapshots.take(progressed, reason="due")
    assert removed == ["snapshots/000000/manifest.json", "snapshots/000000"]


# Failures


@dataclass
class Broken:
    """A shard of which one call fails as often as it is told to."""

    shard: Shard
    call: str
    error: Exception
    times: int = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shard, name)

    def _fail(self, call: str) -> None:
        if call == self.call and self.times:
            self.times -= 1
            raise self.error

    def pause(self, seconds: float) -> ShardState:
        self._fail("pause")
        return self.shard.pause(seconds)

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        self._fail("save")
        return self.shard.save(snapshot, items, seconds)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("pause", TransportError(1, "UNAVAILABLE", "away")),
        ("save", TransportError(1, "UNAVAILABLE", "away")),
        ("save", ShardRefusedError(1, "cannot_save", "no room")),
    ],
)
def test_a_shard_that_fails_leaves_no_snapshot_and_the_next_has_another_number(
    call: str, error: Exception, start: Start
) -> None:
    run = start(2)
    broken = Broken(run.shards[1], call, error)
    services: list[Any] = [run.shards[0], broken]
    snapshots = run.snapshots(services=services, pause_s=0.05)
    with pytest.raises(type(error)) as caught:
        snapshots.take(progressed, reason="due")
    assert caught.value is error
    assert (manifests(run.storage), run.events) == (([], {}), [])
    assert run.storage.names("snapshots") == []  # nor what the other shard has written
    assert [run.push(shard, 0) for shard in (0, 1)] == 2 * [PushStatus.APPLIED]
    assert snapshots.take(progressed, reason="due").number == 1
    assert numbers(run.storage) == [1]


def test_a_manifest_that_cannot_be_written_is_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(1)
    snapshots = run.snapshots()

    def full(storage: Storage, name: str, value: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            snapshots.take(progressed, reason="due")
    assert (manifests(run.storage), run.events) == (([], {}), [])
    assert snapshots.take(progressed, reason="due").number == 1


def test_what_is_left_of_one_that_failed_does_not_pass_for_a_snapshot(
    start: Start, storage: Storage
) -> None:
    run = start(1)
    run.snapshots().take(progressed, reason="due")
    # The manifest is there, though nobody was told so, and the folder cannot be removed.
    run.storage = FaultyStorage(
        storage,
        [
            FileFault(operations=("write",), names="*/manifest.json", torn=True),
            FileFault(operations=("remove",), names="snapshots/000001"),
        ],
    )
    with pytest.raises(OSError, match="Input/output error"):
        run.snapshots().take(progressed, reason="due")
    assert run.storage.n_injected == 2
    found, broken = manifests(storage)
    assert ([m.number for m in found], broken) == ([0], {1: None})


def test_a_snapshot_is_one_though_older_ones_cannot_be_removed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(1)
    snapshots = run.snapshots(keep=2)
    for _ in range(2):
        snapshots.take(progressed, reason="due")

    def fail(storage: Storage, name: str) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(run.storage), "remove", fail)
        assert snapshots.take(progressed, reason="due").number == 2
    assert [m.number for m in manifests(run.storage)[0]] == [0, 1, 2]
    assert run.events[-1] == {
        "kind": "snapshot_not_removed",
        "cause": "[Errno 5] Input/output error",
    }
    assert snapshots.take(progressed, reason="due").number == 3
    assert numbers(run.storage) == [2, 3]


def test_one_that_cannot_be_read_is_not_removed(start: Start) -> None:
    run = start(1)
    run.storage.write("snapshots/000000/manifest.json", b'{"format": 99}')
    snapshots = run.snapshots(keep=2)
    for _ in range(3):
        snapshots.take(progressed, reason="due")
    assert numbers(run.storage) == [0, 2, 3]


def test_what_was_abandoned_goes_with_the_first_newer_one(start: Start) -> None:
    run = start(1)
    for _ in range(2):
        run.snapshots(keep=5).take(progressed, reason="due")
    run.snapshots(keep=5).take(progressed, reason="due")
    resumed = run.snapshots(keep=5, abandoned={1, 2})
    assert numbers(run.storage) == [0, 1, 2]
    assert resumed.take(progressed, reason="due").number == 3
    assert numbers(run.storage) == [0, 3]


# A later start of the run


def test_a_start_that_another_has_succeeded_takes_no_snapshot(start: Start) -> None:
    run = start(1)
    run.storage.write("config.json", b'{"incarnation": 3}')
    shard = Broken(run.shards[0], "pause", AssertionError("must not be paused"), times=0)
    services: list[Any] = [shard]
    snapshots = run.snapshots(incarnation=3, services=services)
    assert snapshots.take(progressed, reason="due").number == 0
    run.storage.write("config.json", b'{"incarnation": 4}')
    shard.times = 1
    with pytest.raises(RunError, match="start 4 of the run goes on elsewhere"):
        snapshots.take(progressed, reason="due")
    assert numbers(run.storage) == [0]


def test_a_start_that_is_succeeded_while_it_saves_writes_no_manifest(start: Start) -> None:
    run = start(1)
    run.storage.write("config.json", b'{"incarnation": 1}')

    def meanwhile(files: Sequence[ShardFile]) -> Progressed:
        run.storage.write("config.json", b'{"incarnation": 2}')
        return progressed(files)

    with pytest.raises(RunError, match="start 2 of the run goes on elsewhere"):
        run.snapshots().take(meanwhile, reason="due")
    assert (numbers(run.storage), run.events) == ([], [])


@pytest.mark.parametrize(
    ("run_now", "coordinator_now", "superseded"),
    [
        (2, 3, None),
        (2, 2, None),  # it is being started, and has not been named yet
        (1, 9, None),  # of the start of the run before
        (2, 4, ("the coordinator", 4)),
        (3, 1, ("the run", 3)),
    ],
)
def test_a_coordinator_whose_place_is_taken_takes_no_snapshot(
    run_now: int, coordinator_now: int, superseded: tuple[str, int] | None, start: Start
) -> None:
    run = start(1)
    snapshots = run.snapshots(incarnation=2, coordinator=3)
    serving = Serving(number=1, run=run_now, shards=(), coordinator=coordinator_now)
    write_serving(run.storage, serving)
    if superseded is None:
        manifest = snapshots.take(progressed, reason="due")
        assert read_manifest(run.storage, manifest.number) == manifest
    else:
        with pytest.raises(SupersededError) as caught:
            snapshots.take(progressed, reason="due")
        assert (caught.value.what, caught.value.start) == superseded
        assert numbers(run.storage) == []


def test_one_whose_place_is_taken_while_it_saves_writes_no_manifest(start: Start) -> None:
    run = start(1)
    serving = Serving(number=1, run=1, shards=())
    write_serving(run.storage, serving)

    def meanwhile(files: Sequence[ShardFile]) -> Progressed:
        write_serving(run.storage, serving.changed(coordinator=2))
        return progressed(files)

    with pytest.raises(SupersededError):
        run.snapshots().take(meanwhile, reason="due")
    assert (numbers(run.storage), run.events) == ([], [])


# What there is


def test_a_damaged_manifest_is_told_from_one_that_is_not_there(start: Start) -> None:
    run = start(1)
    whole = run.snapshots().take(progressed, reason="due")
    for number, content in ((1, b"{"), (2, b"[]"), (3, b"\xff\xfe"), (4, b'{"format": 99}')):
        run.storage.write(f"snapshots/{number:06d}/manifest.json", content)
    run.storage.write("snapshots/000005/shard-00000-of-00001.safetensors", b"x")
    found, broken = manifests(run.storage)
    assert found == [whole]
    assert {number: error is None for number, error in broken.items()} == {
        **dict.fromkeys((1, 2, 3, 4), False),
        5: True,
    }
    for number in (1, 2, 3, 4):
        with pytest.raises(DataError) as caught:
            read_manifest(run.storage, number)
        place = f"{run.storage.url}/snapshots/{number:06d}/manifest.json"
        assert str(caught.value).startswith(f"{place}: is damaged: ")
    with pytest.raises(FileNotFoundError):
        read_manifest(run.storage, 5)


def test_a_folder_without_snapshots_has_none(storage: Storage) -> None:
    assert (numbers(storage), manifests(storage)) == ([], ([], {}))


def test_versions_are_the_shards(start: Start) -> None:
    run = start(1, incarnation=3)
    run.shards[0].push(run.make_push(0, incarnation=3, base=Version(3, 0)))
    (file,) = run.snapshots().take(progressed, reason="due").files
    assert (file.state.incarnation, file.state.clock) == (3, 1)
