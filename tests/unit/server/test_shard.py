"""The shard: each item once, one clock, one writer, and no caller left waiting."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.layout import Segment
from distbelief.server.pushlog import LogEntry, SetAside, read_log
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.writer import _Task
from distbelief.storage import LocalStorage, Storage
from distbelief.types import (
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ShardState,
    Version,
    Weights,
)

StartShard = Callable[..., Shard]
MakePush = Callable[..., Push]
InThreads = Callable[..., list[Any]]
NAN = float("nan")


def fetch(shard: Shard, **arguments: Any) -> list[float]:
    out = torch.empty(shard.spec.size)
    shard.fetch(out, begin=shard.spec.begin, **arguments)
    return out.tolist()


def log_in(storage: Storage) -> list[LogEntry | SetAside]:
    """The one log that there is."""
    (name,) = storage.logs("pushes")
    return list(read_log(storage, name)[1])


def log_of(shard: Shard) -> list[LogEntry | SetAside]:
    """The shard's log so far."""
    shard.state()  # hands it to the system
    return log_in(shard.spec.storage)


class StuckValues:
    """Initial values that hold the writer up until they are released, and are then refused."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def numel(self) -> int:
        self.reached.set()
        assert self.released.wait(60)
        return -1


# Once only


def test_a_push_is_applied(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    reply = shard.push(make_push(0, [1, 2, 3, 4], rate=0.5))
    assert reply == PushReply(status=PushStatus.APPLIED, version=Version(1, 1), staleness=0)
    assert fetch(shard) == [-0.5, -1.0, -1.5, -2.0]


def test_a_repeat_is_answered_and_changes_nothing(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.push(make_push(7))
    shard.push(make_push(8))
    before = shard.state()
    reply = shard.push(make_push(7, 100.0, replica=5, lease=99))
    assert reply == PushReply(status=PushStatus.ALREADY_APPLIED, version=Version(1, 2))
    assert shard.state() == replace(before, repeated=1)
    assert fetch(shard) == [-2.0] * 4
    assert len(log_of(shard)) == 2


def test_a_repeat_gets_the_newest_parameters(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    shard.push(make_push(1))
    out = torch.empty(4)
    reply = shard.push(make_push(0), fetch_into=out)
    assert (reply.status, reply.fetched) == (PushStatus.ALREADY_APPLIED, Version(1, 2))
    assert out.tolist() == [-2.0] * 4


@pytest.mark.parametrize("flaw", [{"gradient": torch.full((4,), NAN)}, {"base": Version(1, 99)}])
def test_a_repeat_is_a_repeat_whatever_it_carries(
    flaw: dict[str, Any], start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    reply = shard.push(replace(make_push(0), **flaw))
    assert reply.status is PushStatus.ALREADY_APPLIED
    assert fetch(shard) == [-1.0] * 4


def test_an_applied_push_can_bring_the_fetch_along(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    out = torch.empty(4)
    reply = shard.push(make_push(0), fetch_into=out)
    assert reply.fetched == reply.version == Version(1, 1)
    assert out.tolist() == [-1.0] * 4  # its own push is in it


def test_an_item_that_was_set_aside_is_never_applied(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    shard.set_aside((0, 3, 4), "not_finite, 3 times")
    out = torch.empty(4)
    reply = shard.push(make_push(3, 50.0), fetch_into=out)
    assert (reply.status, reply.fetched) == (PushStatus.SET_ASIDE, Version(1, 1))
    assert out.tolist() == [-1.0] * 4
    state = shard.state()
    assert state.set_aside == {3: "not_finite, 3 times", 4: "not_finite, 3 times"}
    assert (state.applied, state.clock) == (((0, 1),), 1)  # what was applied stays applied
    assert log_of(shard)[1:] == [
        SetAside(3, "not_finite, 3 times"),
        SetAside(4, "not_finite, 3 times"),
    ]


def test_setting_aside_twice_keeps_the_first_reason(start_shard: StartShard) -> None:
    shard = start_shard()
    shard.set_aside((3,), "first")
    shard.set_aside((3,), "second")
    assert shard.state().set_aside == {3: "first"}
    assert log_of(shard) == [SetAside(3, "first")]


# Refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient": torch.tensor([1.0, NAN, 0.0, 0.0])}, Refusal.NOT_FINITE),
        ({"gradient": torch.full((4,), 100.0)}, Refusal.NORM),
        ({"gradient": torch.ones(5)}, Refusal.SIZE),
        ({"begin": 1}, Refusal.SIZE),
        ({"layout": "other"}, Refusal.LAYOUT),
        ({"rate": NAN}, Refusal.RATE),
        ({"incarnation": 2}, Refusal.INCARNATION),
        ({"base": Version(1, 99)}, Refusal.INCARNATION),
        ({"base": Version(1, 0)}, Refusal.STALE),
    ],
)
def test_a_refusal_leaves_all_state_as_it_was(
    changes: dict[str, Any], reason: Refusal, start_shard: StartShard, make_push: MakePush
) -> None:
    optimizer = OptimizerConfig(
        momentum=0.5, weight_decay=0.0, kernel="unfused", max_norm=10.0, max_staleness=1
    )
    averaging = AveragingConfig(average="exponential", average_every=1)
    shard = start_shard(optimizer=optimizer, averaging=averaging)
    for item in range(3):
        shard.push(make_push(item, base=Version(1, item)))
    before, values = shard.state(), fetch(shard)
    averages, log = fetch(shard, weights=Weights.AVERAGED), log_of(shard)
    out = torch.full((4,), 7.0)
    push = replace(make_push(9, base=Version(1, 3)), **changes)
    gradient = push.gradient.clone()
    reply = shard.push(push, fetch_into=out)
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, reason)
    assert (reply.version, reply.fetched, reply.staleness) == (Version(1, 3), None, None)
    assert reply.detail
    sent = shard.state().nbytes_sent  # by the fetches here
    assert shard.state() == replace(before, refused={reason.value: 1}, nbytes_sent=sent)
    assert (fetch(shard), log_of(shard)) == (values, log)
    assert fetch(shard, weights=Weights.AVERAGED) == averages
    assert out.tolist() == [7.0] * 4
    assert push.gradient.tolist() == pytest.approx(gradient.tolist(), rel=0, abs=0, nan_ok=True)
    # The momentum, too: v is 7/4 after three gradients of 1, and 7/8 after one of 0.
    shard.push(make_push(3, 0.0, base=Version(1, 3), rate=2.0))
    assert fetch(shard) == [value - 2.0 * 0.875 for value in values]


def test_refusals_are_counted_by_reason_and_the_item_can_come_again(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    for _ in range(2):
        shard.push(make_push(0, NAN))
    shard.push(make_push(0, layout="other"))
    assert shard.state().refused == {"not_finite": 2, "layout": 1}
    assert shard.push(make_push(0)).status is PushStatus.APPLIED
    assert shard.state().applied == ((0, 1),)


# Staleness, averages, load, fetch


def test_staleness_is_counted(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard(incarnation=2)
    bases = [Version(2, 0), Version(2, 0), Version(2, 0), Version(2, 2), Version(1, 50)]
    replies = [
        shard.push(make_push(item, base=base, incarnation=2)) for item, base in enumerate(bases)
    ]
    assert [reply.staleness for reply in replies] == [0, 1, 2, 1, None]
    assert shard.state().staleness == {0: 1, 1: 2, 2: 1}


def test_fetch_of_the_average(start_shard: StartShard, make_push: MakePush) -> None:
    averaging = AveragingConfig(average="uniform", average_tail=1.0, average_every=1)
    shard = start_shard(averaging=averaging, total_examples=30)
    assert fetch(shard, weights=Weights.AVERAGED) == [0.0] * 4  # none yet: the parameters
    for item in range(3):
        shard.push(make_push(item))
    assert fetch(shard, weights=Weights.AVERAGED) == [-2.0] * 4
    assert fetch(shard, weights=Weights.LATEST) == [-3.0] * 4


def test_load_is_allowed_until_the_first_push(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard(load=False)
    values = torch.arange(4.0)
    shard.load(torch.ones(4))
    shard.load(values)
    values.zero_()  # the caller's again
    assert fetch(shard) == [0.0, 1.0, 2.0, 3.0]
    shard.push(make_push(0))
    with pytest.raises(ShardRefusedError, match="it has applied 1 pushes already") as caught:
        shard.load(torch.zeros(4))
    assert (caught.value.shard, caught.value.reason) == (0, "too_late")
    assert fetch(shard) == [-1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize("size", [3, 5])
def test_load_of_another_size_is_refused(size: int, start_shard: StartShard) -> None:
    shard = start_shard(load=False)
    with pytest.raises(ShardRefusedError, match=f"{size} values for 4 parameters") as caught:
        shard.load(torch.zeros(size))
    assert caught.value.reason == Refusal.SIZE
    assert not shard.state().loaded


def test_before_the_initial_values_come_nothing_is_taken_or_given(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard(load=False)
    calls: list[Callable[[], object]] = [lambda: shard.push(make_push(0)), lambda: fetch(shard)]
    for call in calls:
        with pytest.raises(ShardRefusedError, match="no initial values") as caught:
            call()
        assert caught.value.reason == Refusal.NOT_LOADED
    state = shard.state()
    assert (state.loaded, state.clock, state.applied) == (False, 0, ())


def test_fetch_unless_leaves_the_buffer_alone(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    out = torch.full((4,), 7.0)
    assert shard.fetch(out, begin=0, unless=Version(1, 0)) == Version(1, 0)
    assert out.tolist() == [7.0] * 4
    shard.push(make_push(0))
    assert shard.fetch(out, begin=0, unless=Version(1, 0)) == Version(1, 1)
    assert out.tolist() == [-1.0] * 4


def test_fetch_of_a_part(start_shard: StartShard) -> None:
    shard = start_shard(6, begin=10, load=False)
    shard.load(torch.arange(10.0, 16.0))
    out = torch.empty(3)
    shard.fetch(out, begin=12)
    assert out.tolist() == [12.0, 13.0, 14.0]


@pytest.mark.parametrize(("begin", "n"), [(9, 2), (14, 3), (0, 1), (10, 7), (16, 1)])
def test_fetch_beyond_the_shard_is_refused(begin: int, n: int, start_shard: StartShard) -> None:
    shard = start_shard(6, begin=10)
    out = torch.full((n,), 7.0)
    with pytest.raises(ShardRefusedError, match=r"of a shard that has \[10, 16\)") as caught:
        shard.fetch(out, begin=begin)
    assert caught.value.reason == Refusal.SIZE
    assert out.tolist() == [7.0] * n


def test_state_tells_all(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard(6, begin=10, index=2, n_shards=5, incarnation=3)
    here = {"begin": 10, "incarnation": 3, "size": 6}
    shard.push(make_push(4, base=Version(3, 0), examples=9, skipped=(17,), **here))
    shard.push(make_push(5, base=Version(2, 0), **here))
    shard.push(make_push(7, base=Version(3, 0), **here))
    shard.push(make_push(7, base=Version(3, 0), **here))
    shard.push(make_push(8, rate=-1.0, **here))
    shard.set_aside((6,), "why")
    assert shard.state() == ShardState(
        shard=2,
        incarnation=3,
        begin=10,
        end=16,
        loaded=True,
        clock=3,
        examples=29,
        skipped=1,
        applied=((4, 6), (7, 8)),
        set_aside={6: "why"},
        repeated=1,
        refused={"rate": 1},
        staleness={0: 1, 2: 1},
        nbytes_received=3 * 6 * 4,
    )
    assert shard.version == Version(3, 3)


def test_what_could_not_be_read_counts_once_applied(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    shard.push(make_push(0, examples=7, skipped=(4, 5, 6)))
    shard.push(make_push(0, examples=7, skipped=(4, 5, 6)))  # a repeat
    shard.push(make_push(1, NAN, examples=8, skipped=(11, 12)))  # refused
    assert (shard.state().examples, shard.state().skipped) == (7, 3)
    shard.push(make_push(1, examples=8, skipped=(11, 12)))
    assert (shard.state().examples, shard.state().skipped) == (15, 5)


def test_state_is_a_copy(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard()
    shard.set_aside((3,), "why")
    before = shard.state()
    shard.push(make_push(0))
    shard.set_aside((4,), "why")
    assert (before.clock, before.set_aside, before.staleness) == (0, {3: "why"}, {})


def test_the_log_has_all_of_a_push(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard(index=1, n_shards=2, incarnation=4)
    shard.push(
        make_push(
            6, rate=0.25, replica=3, examples=8, skipped=(5, 9), base=Version(2, 40), incarnation=4
        )
    )
    shard.close()
    text = shard.spec.storage.read_log("pushes/shard-00001-of-00002.0004.jsonl")
    header, entry = (json.loads(line) for line in text.splitlines())
    assert (header["shard"], header["begin"], header["end"]) == (1, 0, 4)
    assert entry == {
        "item": 6,
        "clock": 1,
        "base": [2, 40],
        "rate": 0.25,
        "replica": 3,
        "examples": 8,
        "skipped": [5, 9],
    }


def test_segments_and_rule_are_the_specs(start_shard: StartShard, make_push: MakePush) -> None:
    segments = (Segment(0, 2, 1.0, 1.0), Segment(2, 4, 2.0, 0.0))
    optimizer = OptimizerConfig(momentum=0.5, weight_decay=0.5, kernel="unfused")
    shard = start_shard(segments=segments, optimizer=optimizer, load=False)
    shard.load(torch.ones(4))
    shard.push(make_push(0, 0.0, rate=0.5))
    shard.push(make_push(1, 1.0, rate=0.5, base=Version(1, 1)))
    # v1 = .5, p1 = .75; v2 = .25 + 1 + .375, p2 = .75 - .8125
    assert fetch(shard) == [-0.0625, -0.0625, 0.0, 0.0]


# Many threads


def test_threads_that_push_shuffled_and_repeated_items_apply_each_once(
    start_shard: StartShard, make_push: MakePush, in_threads: InThreads
) -> None:
    n_items, n_threads = 120, 6
    shard = start_shard(n_ports=n_threads)

    def replica(number: int) -> list[tuple[int, PushStatus]]:
        order = 2 * list(range(n_items))
        random.Random(number).shuffle(order)
        mine = [i for i in order if number in (i % n_threads, (i + 1) % n_threads)]
        return [
            (i, shard.push(make_push(i, float(2 ** (i % 5)), replica=number)).status) for i in mine
        ]

    results = in_threads([lambda r=r: replica(r) for r in range(n_threads)])
    statuses = [found for result in results for found in result]
    applied = sorted(i for i, status in statuses if status is PushStatus.APPLIED)
    assert applied == list(range(n_items))
    assert {status for _, status in statuses} == {PushStatus.APPLIED, PushStatus.ALREADY_APPLIED}
    state = shard.state()
    assert (state.clock, state.applied) == (n_items, ((0, n_items),))
    assert state.repeated == len(statuses) - n_items
    assert state.examples == 10 * n_items
    assert sum(state.staleness.values()) == n_items
    assert fetch(shard) == [-float(sum(2 ** (i % 5) for i in range(n_items)))] * 4
    entries = [entry for entry in log_of(shard) if isinstance(entry, LogEntry)]
    assert [entry.clock for entry in entries] == list(range(1, n_items + 1))
    assert sorted(entry.item for entry in entries) == list(range(n_items))


def test_a_fetch_is_of_one_clock(
    start_shard: StartShard, make_push: MakePush, in_threads: InThreads
) -> None:
    size, n_items = 50_000, 60
    shard = start_shard(size, n_ports=4)
    ended = threading.Event()

    def push(first: int) -> None:
        for item in range(first, n_items, 2):
            out = torch.empty(size)
            reply = shard.push(make_push(item, -1.0, size=size), fetch_into=out)
            assert reply.fetched is not None
            assert torch.equal(out, torch.full((size,), float(reply.fetched.clock)))

    def both() -> None:
        try:
            in_threads([lambda: push(0), lambda: push(1)])
        finally:
            ended.set()

    def watch() -> int:
        out, n, last = torch.empty(size), 0, 0
        while not ended.is_set() or n == 0:
            version = shard.fetch(out, begin=0)
            assert torch.equal(out, torch.full((size,), float(version.clock)))
            assert version.clock >= last
            last, n = version.clock, n + 1
        return n

    _, *fetches = in_threads([both, watch, watch])
    assert min(fetches) > 0
    assert fetch(shard)[0] == n_items


def test_a_fetch_after_a_push_sees_it(
    start_shard: StartShard, make_push: MakePush, in_threads: InThreads
) -> None:
    shard = start_shard(n_ports=4)

    def replica(number: int) -> None:
        out = torch.empty(4)
        for k in range(30):
            reply = shard.push(make_push(30 * number + k, -1.0))
            version = shard.fetch(out, begin=0)
            assert version.clock >= reply.version.clock
            assert out.tolist() == [float(version.clock)] * 4

    in_threads([lambda r=r: replica(r) for r in range(4)])


# A full queue, a failing disk, the end


def test_a_full_queue_answers_busy_and_applies_what_it_took(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard(load=False, n_ports=1, busy_after_s=0.1)
    shard.load(torch.zeros(4))
    room, n_pushes = 10, 13
    stuck = StuckValues()
    with ThreadPoolExecutor(n_pushes + 1) as pool:
        holding = pool.submit(shard.load, stuck)
        assert stuck.reached.wait(60)
        futures = [pool.submit(shard.push, make_push(item)) for item in range(n_pushes)]
        answered = as_completed(futures, timeout=60)
        busy = [next(answered).exception() for _ in range(n_pushes - room)]
        stuck.released.set()
        others = [future.result() for future in answered]
        assert isinstance(holding.exception(60), ShardRefusedError)
    assert [type(error) for error in busy] == 3 * [TransportError]
    assert [r.status for r in others] == room * [PushStatus.APPLIED]
    state = shard.state()
    assert (state.clock, state.refused) == (room, {})
    assert fetch(shard) == [-float(room)] * 4


@pytest.mark.parametrize(
    "call",
    [
        lambda shard, push: shard.push(push),
        lambda shard, push: fetch(shard),
        lambda shard, push: shard.state(),
        lambda shard, push: shard.load(torch.zeros(4)),
        lambda shard, push: shard.set_aside((3,), "why"),
    ],
    ids=["push", "fetch", "state", "load", "set_aside"],
)
def test_any_call_without_room_in_the_queue_may_be_tried_again(
    call: Callable[[Shard, Push], object], start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard(index=3, n_shards=4, n_ports=1, busy_after_s=0.01)
    stuck = StuckValues()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(shard.load, stuck)
        assert stuck.reached.wait(60)
        others = [_Task(lambda: None) for _ in range(10)]
        for task in others:
            shard._writer._tasks.put_nowait(task)
        with pytest.raises(TransportError) as caught:
            call(shard, make_push(0))
        stuck.released.set()
        assert [task.result.result(60) for task in others] == 10 * [None]
    assert vars(caught.value) == {
        "shard": 3,
        "code": "BUSY",
        "detail": "no room in its queue for 0.01 s",
    }
    call(shard, make_push(0))


def test_a_failing_log_loses_the_shard_for_all_callers(
    start_shard: StartShard,
    make_push: MakePush,
    in_threads: InThreads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = start_shard(n_ports=8)
    shard.push(make_push(0))
    assert shard.failure is None

    def full(entry: LogEntry) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "append", full)

    def push(item: int) -> ProcessLostError:
        with pytest.raises(ProcessLostError) as caught:
            shard.push(make_push(item))
        return caught.value

    errors = in_threads([lambda i=i: push(i) for i in range(1, 9)])
    assert {str(error) for error in errors} == {
        "shard 0 was lost: its push log cannot be written: No space left on device; "
        "make room in the run's folder"
    }
    calls: list[Callable[[], object]] = [
        shard.state,
        lambda: fetch(shard),
        lambda: shard.load(torch.zeros(4)),
        lambda: shard.set_aside((9,), "why"),
        lambda: shard.push(make_push(0)),
    ]
    for call in calls:
        with pytest.raises(ProcessLostError, match="No space left"):
            call()
    assert shard.failure == (
        "its push log cannot be written: No space left on device; make room in the run's folder"
    )
    shard.close()


def test_tasks_behind_a_failure_are_answered_not_left(
    start_shard: StartShard, make_push: MakePush, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = start_shard(n_ports=1)

    def full(entry: LogEntry) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "append", full)
    stuck = StuckValues()
    with ThreadPoolExecutor(9) as pool:
        pool.submit(shard.load, stuck)
        assert stuck.reached.wait(60)
        futures = [pool.submit(shard.push, make_push(item)) for item in range(8)]
        stuck.released.set()
        errors = [future.exception(60) for future in futures]
    assert {type(error) for error in errors} == {ProcessLostError}


def close_fails(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    close = shard._log.close

    def fail() -> None:
        close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "close", fail)


def test_a_shard_whose_log_failed_closes_quietly(
    start_shard: StartShard, make_push: MakePush, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = start_shard()

    def full(entry: LogEntry) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "append", full)
    close_fails(shard, monkeypatch)  # what is left in its buffer has no room either
    with pytest.raises(ProcessLostError):
        shard.push(make_push(0))
    shard.close()


def test_a_log_that_fails_at_the_end_is_not_hidden(
    start_shard: StartShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = start_shard()
    close_fails(shard, monkeypatch)
    with pytest.raises(ProcessLostError, match="push log cannot be written: No space left"):
        shard.close()


@pytest.mark.parametrize("ended", [False, True])
def test_a_shard_that_does_not_run_says_so(
    ended: bool, make_spec: Callable[..., ShardSpec], make_push: MakePush
) -> None:
    shard = Shard(make_spec())
    if ended:
        with shard:
            pass
        shard.close()
    calls: list[Callable[[], object]] = [
        shard.state,
        lambda: fetch(shard),
        lambda: shard.push(make_push(0)),
        lambda: shard.load(torch.zeros(4)),
        lambda: shard.set_aside((9,), "why"),
    ]
    for call in calls:
        with pytest.raises(ProcessLostError, match="shard 0 was lost: it does not run"):
            call()


def test_close_finishes_the_tasks_at_hand(start_shard: StartShard, make_push: MakePush) -> None:
    shard = start_shard(n_ports=4)
    stuck = StuckValues()
    with ThreadPoolExecutor(10) as pool:
        pool.submit(shard.load, stuck)
        assert stuck.reached.wait(60)
        pushes = [pool.submit(shard.push, make_push(item)) for item in range(4)]
        while shard._writer._tasks.qsize() < 4:  # until all are in the queue
            pass
        closing = pool.submit(shard.close)
        while shard._writer._tasks.qsize() < 5:
            pass
        stuck.released.set()
        assert [push.result(60).status for push in pushes] == 4 * [PushStatus.APPLIED]
        closing.result(60)
    assert len(log_in(shard.spec.storage)) == 4


def test_the_writer_ends_with_the_shard(
    make_spec: Callable[..., ShardSpec], make_push: MakePush
) -> None:
    def writers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "shard-17-writer"]

    with Shard(make_spec(index=17, n_shards=18)) as shard:
        shard.load(torch.zeros(4))
        assert len(writers()) == 1
    assert writers() == []


def test_a_log_of_the_same_incarnation_is_never_written_over(
    start_shard: StartShard, make_spec: Callable[..., ShardSpec]
) -> None:
    start_shard()
    with pytest.raises(FileExistsError), Shard(make_spec()):
        pass
    with Shard(make_spec(incarnation=2)) as second:
        assert second.version == Version(2, 0)


def test_a_log_folder_that_cannot_be_made_stops_the_start(
    make_spec: Callable[..., ShardSpec], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    storage = LocalStorage(tmp_path / "file" / "x")
    with pytest.raises(OSError, match="file"), Shard(make_spec(storage=storage)):
        pass


def test_predicted_parameters_lead_by_the_staleness_that_is_expected(
    start_shard: Callable[..., Shard], make_push: Callable[..., Push]
) -> None:
    optimizer = OptimizerConfig(
        momentum=0.5, weight_decay=0.0, kernel="unfused", predict_weights=True
    )
    shard = start_shard(optimizer=optimizer)
    latest, predicted, handed = torch.empty(4), torch.empty(4), torch.empty(4)

    def push(item: int, base: int) -> None:
        shard.push(make_push(item, base=Version(1, base), rate=0.25), fetch_into=handed)
        shard.fetch(latest, begin=0)
        shard.fetch(predicted, begin=0, weights=Weights.PREDICTED)
        assert torch.equal(handed, predicted)

    push(0, base=0)  # nothing has been stale yet: what is handed out is what is there
    assert torch.equal(predicted, latest)
    for item in range(1, 400):  # from now on each gradient is one update old
        push(item, base=item - 1)
    # A constant gradient of 1 makes the momentum 2, and the next update's part of it is half.
    torch.testing.assert_close(predicted, latest - 0.25 * 2.0 * 0.5, rtol=0.0, atol=1e-3)
