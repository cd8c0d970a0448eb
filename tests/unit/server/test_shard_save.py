"""A shard that is paused and saved, while pushes come."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError
from distbelief.server.pause import Gate, Pause
from distbelief.server.shard import Shard
from distbelief.server.statefile import check, read
from distbelief.storage import LocalStorage, Storage
from distbelief.types import (
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ShardFile,
    Version,
    Weights,
)

LONG_S = 600.0
"""Nothing here waits for so long: what shall end a pause is another call."""

StartShard = Callable[..., Shard]
MakePush = Callable[..., Push]


class Watched:
    """Tells when a push has begun to wait, and when a pause has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._held, self._begun = threading.Semaphore(0), threading.Semaphore(0)
        wait, begin = Pause.wait, Gate.begin

        def watched_wait(pause: Pause) -> None:
            self._held.release()
            wait(pause)

        def watched_begin(gate: Gate, pause: Pause) -> None:
            begin(gate, pause)
            self._begun.release()

        monkeypatch.setattr(Pause, "wait", watched_wait)
        monkeypatch.setattr(Gate, "begin", watched_begin)

    def held(self, n: int = 1) -> None:
        """Returns when so many more waits have begun."""
        for _ in range(n):
            assert self._held.acquire(timeout=60)

    def paused(self, n: int = 1) -> None:
        """Returns when so many more pauses have begun."""
        for _ in range(n):
            assert self._begun.acquire(timeout=60)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def applied(shard: Shard) -> list[int]:
    return [item for begin, end in shard.state().applied for item in range(begin, end)]


def saved(file: ShardFile) -> list[int]:
    return [item for begin, end in file.state.applied for item in range(begin, end)]


def parameters(shard: Shard, file: ShardFile, snapshot: int = 0) -> list[float]:
    vector: list[float] = read(shard.spec.storage, snapshot, file).tensors["parameters"].tolist()
    return vector


def test_a_shard_is_saved_as_it_is(start_shard: StartShard, make_push: MakePush) -> None:
    optimizer = OptimizerConfig(momentum=0.5, weight_decay=0.0, kernel="unfused")
    averaging = AveragingConfig(average="exponential", average_every=1)
    shard = start_shard(
        index=1, n_shards=3, begin=0, incarnation=4, optimizer=optimizer, averaging=averaging
    )
    here: dict[str, Any] = {"incarnation": 4, "base": Version(4, 0)}
    shard.push(make_push(0, 1.0, **here))
    shard.push(make_push(2, 2.0, examples=9, skipped=(7,), **here))
    shard.set_aside((5,), "norm")
    before = shard.state()
    file = shard.save(17, (), 0.0)
    assert (file.name, file.n_shards) == ("shard-00001-of-00003.safetensors", 3)
    assert file.state == before
    assert file.paused_s >= 0.0
    found = read(shard.spec.storage, 17, file)
    assert found.tensors["parameters"].tolist() == [-3.5] * 4  # -1, then 0.5 + 2 more
    assert found.tensors["momentum"].tolist() == [2.5] * 4
    out = torch.empty(4)
    shard.fetch(out, begin=0, weights=Weights.AVERAGED)
    assert torch.equal(found.tensors["average"], out)
    account = found.about["account"]
    assert (account["clock"], account["applied"]) == (2, [[0, 1], [2, 3]])
    assert (account["examples"], account["skipped"]) == (19, 1)
    assert account["set_aside"] == {"5": "norm"}
    assert shard.state() == replace(before, nbytes_sent=16)


def test_saving_what_is_there_pauses_nothing(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    for item in range(3):
        shard.push(make_push(item))
    shard.set_aside((4,), "norm")
    assert saved(shard.save(0, ((0, 3), (4, 5)), LONG_S)) == [0, 1, 2]
    assert shard.push(make_push(3)).status is PushStatus.APPLIED


def test_a_shard_without_values_has_nothing_to_save(start_shard: StartShard) -> None:
    shard = start_shard(load=False)
    with pytest.raises(ShardRefusedError) as caught:
        shard.save(0, ((0, 1),), LONG_S)
    assert (caught.value.reason, caught.value.shard) == ("not_loaded", 0)
    shard.load(torch.zeros(4))
    assert saved(shard.save(0, (), LONG_S)) == []


def test_a_new_item_is_held_while_the_shard_is_paused(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    assert shard.pause(LONG_S) == shard.state()
    pushes = [pool.submit(shard.push, make_push(item)) for item in (1, 2)]
    watched.held(2)
    assert applied(shard) == [0]
    # A repeat is answered, and so is what was set aside; fetches go on.
    out, into = torch.empty(4), torch.empty(4)
    reply = shard.push(make_push(0), fetch_into=into)
    assert (reply.status, into.tolist()) == (PushStatus.ALREADY_APPLIED, [-1.0] * 4)
    shard.set_aside((9,), "norm")
    assert shard.push(make_push(9)).status is PushStatus.SET_ASIDE
    assert (shard.fetch(out, begin=0), out.tolist()) == (Version(1, 1), [-1.0] * 4)
    assert not any(push.done() for push in pushes)
    assert saved(shard.save(0, (), 0.0)) == [0]
    assert {push.result(60).status for push in pushes} == {PushStatus.APPLIED}
    assert applied(shard) == [0, 1, 2]


def test_what_a_push_brings_back_is_of_the_time_after_the_pause(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    shard.pause(LONG_S)
    out = torch.empty(4)
    push = pool.submit(shard.push, make_push(0, [1, 2, 3, 4]), fetch_into=out)
    watched.held()
    shard.save(0, (), 0.0)
    reply = push.result(60)
    assert (reply.status, reply.staleness, reply.fetched) == (
        PushStatus.APPLIED,
        0,
        Version(1, 1),
    )
    assert out.tolist() == [-1.0, -2.0, -3.0, -4.0]


def test_the_missing_items_end_the_pause_with_exactly_that_set(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    shard.pause(LONG_S)
    watched.paused()
    saving = pool.submit(shard.save, 0, ((0, 3),), LONG_S)
    watched.paused()
    later = pool.submit(shard.push, make_push(3, 100.0))
    watched.held()
    assert shard.push(make_push(2)).status is PushStatus.APPLIED  # it is admitted
    assert not saving.done()
    assert shard.push(make_push(1)).status is PushStatus.APPLIED
    # At once, before anything else: the next push is not in it.
    shard.push(make_push(4, 1000.0))
    file = saving.result(60)
    assert (saved(file), file.state.clock) == ([0, 1, 2], 3)
    assert parameters(shard, file) == [-3.0] * 4
    assert later.result(60).status is PushStatus.APPLIED
    assert applied(shard) == [0, 1, 2, 3, 4]


def test_setting_the_missing_item_aside_completes_it(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    saving = pool.submit(shard.save, 0, ((0, 2),), LONG_S)
    watched.paused()
    shard.push(make_push(0))
    shard.set_aside((1,), "norm")
    file = saving.result(60)
    assert (saved(file), file.state.set_aside) == ([0], {1: "norm"})


@pytest.mark.parametrize(
    ("gradient", "reason"), [(float("nan"), Refusal.NOT_FINITE), (1.0, Refusal.STALE)]
)
def test_a_refused_push_of_a_missing_item_ends_the_pause_at_once(
    gradient: float,
    reason: Refusal,
    start_shard: StartShard,
    make_push: MakePush,
    watched: Watched,
    pool: ThreadPoolExecutor,
) -> None:
    """It was computed for nothing, and a replica needs an item's time to bring it again."""
    shard = start_shard(optimizer=OptimizerConfig(max_staleness=0, kernel="unfused"))
    shard.push(make_push(0))
    shard.pause(LONG_S)
    watched.paused()
    saving = pool.submit(shard.save, 0, ((0, 3),), LONG_S)
    watched.paused()
    held = pool.submit(shard.push, make_push(5, base=Version(1, 1)))
    watched.held()
    reply = shard.push(make_push(2, gradient, base=Version(1, 0)))
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, reason)
    file = saving.result(60)
    assert (saved(file), file.state.refused) == ([0], {reason: 1})
    assert held.result(60).status is PushStatus.APPLIED


def test_a_refused_push_that_nobody_waits_for_ends_no_pause(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    saving = pool.submit(shard.save, 0, ((0, 1),), LONG_S)
    watched.paused()
    later = pool.submit(shard.push, make_push(7, float("nan")))
    watched.held()  # a push of another item is held before it is looked at
    shard.push(make_push(0))
    assert saved(saving.result(60)) == [0]
    assert later.result(60).status is PushStatus.REFUSED


def test_a_push_that_others_wait_for_is_let_in_once_saving_has_begun(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    """Of a shard that was paused before it was told what the others have."""
    shard = start_shard()
    shard.pause(LONG_S)
    pushes = [pool.submit(shard.push, make_push(item)) for item in (0, 1)]
    watched.held(2)
    file = shard.save(0, ((0, 1),), LONG_S)
    assert saved(file) == [0]
    assert {push.result(60).status for push in pushes} == {PushStatus.APPLIED}


def test_a_pause_whose_coordinator_has_died_ends_by_itself(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.pause(0.01)
    assert shard.push(make_push(0)).status is PushStatus.APPLIED


def test_after_its_deadline_a_shard_is_saved_without_what_is_missing(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    file = shard.save(0, ((0, 3),), 0.01)
    assert saved(file) == [0]
    assert file.paused_s >= 0.01
    assert shard.push(make_push(7)).status is PushStatus.APPLIED


def test_two_savings_after_each_other(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    first = shard.save(0, (), LONG_S)
    shard.push(make_push(1))
    second = shard.save(1, (), LONG_S)
    assert (saved(first), saved(second)) == ([0], [0, 1])
    assert (parameters(shard, first, 0), parameters(shard, second, 1)) == ([-1.0] * 4, [-2.0] * 4)


def test_two_savings_at_once(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    first = pool.submit(shard.save, 0, ((0, 1),), 0.05)
    watched.paused()
    second = pool.submit(shard.save, 1, ((0, 2),), LONG_S)
    watched.paused()
    shard.push(make_push(0))
    assert saved(first.result(60)) in ([], [0])  # at its deadline, whatever there is
    held = pool.submit(shard.push, make_push(5))
    watched.held()
    shard.push(make_push(1))
    assert saved(second.result(60)) == [0, 1]
    assert held.result(60).status is PushStatus.APPLIED


def test_a_saving_that_the_next_one_takes_the_place_of_is_not_left_waiting(
    start_shard: StartShard, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    first = pool.submit(shard.save, 0, ((0, 1),), 1.0)
    watched.paused()
    assert saved(shard.save(1, (), 0.0)) == []
    assert saved(first.result(60)) == []


# The end


def end_of(future: "Future[Any]") -> str:
    error = future.exception(60)
    assert isinstance(error, ProcessLostError)
    return str(error)


def test_closing_frees_those_who_wait(
    start_shard: StartShard, make_push: MakePush, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    shard.pause(LONG_S)
    pushes = [pool.submit(shard.push, make_push(item)) for item in (1, 2)]
    watched.held(2)
    shard.close()
    assert {end_of(push) for push in pushes} == {"shard 0 was lost: it does not run"}


def test_closing_ends_a_saving_that_waits(
    start_shard: StartShard, watched: Watched, pool: ThreadPoolExecutor
) -> None:
    shard = start_shard()
    saving = pool.submit(shard.save, 0, ((0, 1),), LONG_S)
    watched.paused()
    shard.close()
    assert end_of(saving) == "shard 0 was lost: it does not run"


def test_a_shard_that_is_lost_loses_those_who_wait_too(
    start_shard: StartShard,
    make_push: MakePush,
    watched: Watched,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = start_shard()
    saving = pool.submit(shard.save, 0, ((0, 1),), LONG_S)
    watched.paused()
    held = pool.submit(shard.push, make_push(1))
    watched.held()

    def full(entry: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "append", full)
    with pytest.raises(ProcessLostError):
        shard.push(make_push(0))
    assert "No space left" in end_of(saving)
    assert "No space left" in end_of(held)


# A storage that fails


class Failing:
    """A storage, of which one operation fails while it is told to."""

    def __init__(self, inner: Storage) -> None:
        self.inner, self.error = inner, OSError(28, "No space left on device")
        self.fails = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, name: str, *parts: bytes) -> None:
        if self.fails:
            raise self.error
        self.inner.write(name, *parts)


def test_a_shard_that_cannot_be_saved_says_so_and_goes_on(
    start_shard: StartShard, make_push: MakePush, tmp_path: Path
) -> None:
    storage = Failing(LocalStorage(tmp_path))
    shard = start_shard(storage=storage, index=2, n_shards=3)
    shard.push(make_push(0))
    with pytest.raises(ShardRefusedError) as caught:
        shard.save(0, (), LONG_S)
    assert (caught.value.shard, caught.value.reason) == (2, "cannot_save")
    assert caught.value.detail == f"cannot write to {tmp_path}: No space left on device"
    assert (shard.failure, storage.names("snapshots")) == (None, [])
    assert shard.push(make_push(1)).status is PushStatus.APPLIED
    storage.fails = False
    assert saved(shard.save(1, (), LONG_S)) == [0, 1]


def test_a_log_that_cannot_be_made_durable_leaves_no_snapshot(
    start_shard: StartShard, make_push: MakePush, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = start_shard()
    shard.push(make_push(0))

    def full() -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shard._log, "sync", full)
        with pytest.raises(ShardRefusedError, match="Input/output error"):
            shard.save(0, (), LONG_S)
    assert shard.spec.storage.names("snapshots") == []
    assert shard.push(make_push(1)).status is PushStatus.APPLIED


def test_the_log_is_durable_before_the_snapshot_that_rests_on_it(
    start_shard: StartShard, make_push: MakePush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    storage = LocalStorage(tmp_path)

    class Told(Failing):
        def write(self, name: str, *parts: bytes) -> None:
            order.append(name)
            self.inner.write(name, *parts)

    shard = start_shard(storage=Told(storage))
    shard.push(make_push(0))
    sync = shard._log.sync

    def told() -> None:
        sync()
        (name,) = storage.logs("pushes")
        order.append(f"log of {len(storage.read_log(f'pushes/{name}').splitlines())} lines")

    monkeypatch.setattr(shard._log, "sync", told)
    shard.save(3, (), LONG_S)
    assert order == ["log of 2 lines", "snapshots/000003/shard-00000-of-00001.safetensors"]


# Many threads


def test_whenever_it_is_saved_the_file_is_of_one_state(
    start_shard: StartShard, make_push: MakePush, in_threads: Callable[..., list[Any]]
) -> None:
    n_items, n_saves = 60, 6
    shard = start_shard(n_ports=4)

    def push(first: int) -> list[PushReply]:
        return [shard.push(make_push(item, -1.0)) for item in range(first, n_items, 3)]

    def save() -> list[ShardFile]:
        files = []
        for number in range(n_saves):
            shard.pause(LONG_S)
            wanted = ((0, 10 * (number + 1)),)
            files.append(shard.save(number, wanted, LONG_S))
        return files

    *pushed, files = in_threads([lambda f=f: push(f) for f in range(3)] + [save])
    assert {reply.status for replies in pushed for reply in replies} == {PushStatus.APPLIED}
    for number, file in enumerate(files):
        check(shard.spec.storage, number, file)
        assert set(range(10 * (number + 1))) <= set(saved(file))
        assert parameters(shard, file, number) == [float(len(saved(file)))] * 4
    assert applied(shard) == list(range(n_items))
