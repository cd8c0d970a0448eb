"""A shard that gets gradients in parts: together they are one push, or none."""

import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.layout import Segment
from distbelief.server.joint import Caller
from distbelief.server.pause import Gate, Pause
from distbelief.server.pushlog import LogEntry, read_log
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.storage import LocalStorage
from distbelief.types import Push, PushReply, PushStatus, Refusal, Version

MakeSpec = Callable[..., ShardSpec]
MakePush = Callable[..., Push]
Start = Callable[..., Shard]
NAN = float("nan")
LONG_S = 600.0
SIZE = 6


class Watched:
    """Tells when calls have begun to wait: of parts for the others, of pushes for a pause."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._waits, self._held, self._begun = (threading.Semaphore(0) for _ in range(3))
        for owner, name, told in (
            (Caller, "wait", self._waits),
            (Pause, "wait", self._held),
            (Gate, "begin", self._begun),
        ):
            self._watch(patch, owner, name, told)

    def _watch(
        self, patch: pytest.MonkeyPatch, owner: type, name: str, told: threading.Semaphore
    ) -> None:
        call = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            if name == "begin":
                call(*arguments)
                told.release()
                return None
            told.release()
            return call(*arguments)

        patch.setattr(owner, name, watched)

    def waits(self, n: int = 1) -> None:
        """Returns when so many more parts have been taken in."""
        for _ in range(n):
            assert self._waits.acquire(timeout=60)

    def held(self, n: int = 1) -> None:
        """Returns when so many more pushes are held by a pause."""
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
def start(make_spec: MakeSpec) -> Iterator[Start]:
    """Starts a shard of six zeros from element 10 on; it ends with the test."""
    with ExitStack() as stack:

        def make(
            *, parts_wait_s: float = LONG_S, busy_after_s: float = 60.0, **changes: Any
        ) -> Shard:
            spec = make_spec(SIZE, begin=10, **changes)
            spec = replace(spec, parts_wait_s=parts_wait_s)
            shard = Shard(spec, busy_after_s=busy_after_s)
            stack.enter_context(shard)
            shard.load(torch.zeros(SIZE))
            return shard

        yield make


@pytest.fixture
def pool(start: Start) -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait; what is still waiting at the end fails, since shards end."""
    pool = ThreadPoolExecutor(12)
    yield pool
    pool.shutdown(wait=False)


@pytest.fixture
def part(make_push: MakePush) -> Callable[..., Push]:
    """A part of an item: its begin in the flat vector, and values."""

    def make(item: int, begin: int, values: Sequence[float], **changes: Any) -> Push:
        return make_push(item, list(values), begin=begin, **changes)

    return make


MakePart = Callable[..., Push]


def fetch(shard: Shard) -> list[float]:
    out = torch.empty(SIZE)
    shard.fetch(out, begin=10)
    return out.tolist()


def log_of(shard: Shard) -> list[Any]:
    shard.state()
    (name,) = shard.spec.storage.logs("pushes")
    return list(read_log(shard.spec.storage, name)[1])


def asked(
    pool: ThreadPoolExecutor, shard: Shard, push: Push
) -> "tuple[Future[PushReply], torch.Tensor]":
    """A push that is under way, and the vector that it fetches into, of sevens so far."""
    out = torch.full((push.gradient.numel(),), 7.0)
    return pool.submit(shard.push, push, fetch_into=out), out


# Together they are one push


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Parts in the order of their coming: item, replica, begin and end.

    Each replica cuts its items its own way, and brings one after the other.
    """
    rest = []
    for replica in range(draw(st.integers(1, 3))):
        parts = []
        for number in range(draw(st.integers(1, 3))):
            cuts = draw(st.sets(st.integers(1, 36), min_size=1, max_size=3))
            edges = [0, *sorted(cuts), 37]
            ranges = draw(st.permutations(list(itertools.pairwise(edges))))
            parts += [(3 * number + replica, replica, begin, end) for begin, end in ranges]
        rest.append(parts)
    order = []
    while any(rest):
        of = draw(st.sampled_from([parts for parts in rest if parts]))
        order.append(of.pop(0))
    return order


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(histories(), st.integers(0, 2**32))
def test_parts_in_any_order_are_one_push_bit_for_bit(
    make_spec: MakeSpec, make_push: MakePush, history: list[tuple[int, int, int, int]], seed: int
) -> None:
    size, first = 37, 100
    generator = torch.Generator().manual_seed(seed)
    gradients = {item: torch.randn(size, generator=generator) for item, *_ in history}
    left = {item: sum(item == i for i, *_ in history) for item in gradients}
    common: dict[str, Any] = {
        "begin": first,
        "segments": (Segment(0, 20, 1.0, 1.0), Segment(20, size, 2.0, 0.0)),
        "optimizer": OptimizerConfig(kernel="unfused"),
        "averaging": AveragingConfig(average="exponential", average_every=1),
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        Shard(make_spec(size, storage=LocalStorage(Path(one)), **common)) as whole,
        Shard(
            make_spec(size, storage=LocalStorage(Path(other)), parts_wait_s=LONG_S, **common)
        ) as cut,
        ThreadPoolExecutor(12) as pool,
    ):
        watched = Watched(patch)
        values = torch.randn(size, generator=generator)
        whole.load(values)
        cut.load(values)
        under_way: dict[int, list[tuple[Future[PushReply], torch.Tensor, int]]] = {}
        for item, replica, begin, end in history:
            fields = {"replica": replica, "rate": 0.1 * (1 + item), "skipped": (item,)}
            push = make_push(
                item, gradients[item][begin:end].clone(), begin=first + begin, **fields
            )
            under_way.setdefault(item, []).append((*asked(pool, cut, push), begin))
            watched.waits()
            left[item] -= 1
            if left[item]:
                continue
            fetched = torch.empty(size)
            reply = whole.push(
                make_push(item, gradients[item].clone(), begin=first, **fields),
                fetch_into=fetched,
            )
            assert reply.status is PushStatus.APPLIED
            for answer, out, low in under_way.pop(item):
                assert answer.result(60) == reply
                assert torch.equal(out, fetched[low : low + out.numel()])
        files = [shard.save(0, (), 0.0) for shard in (whole, cut)]
        contents = [
            shard.spec.storage.read(f"snapshots/000000/{file.name}")
            for shard, file in zip((whole, cut), files, strict=True)
        ]
        assert contents[0] == contents[1]
        assert files[0].state.nbytes_received == files[1].state.nbytes_received
        assert log_of(whole) == log_of(cut)


def test_all_calls_get_one_answer_and_each_its_own_range(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    left, left_out = asked(pool, shard, part(3, 10, [1, 2], skipped=(4,)))
    silent = pool.submit(shard.push, part(3, 12, [3], skipped=(4,)))
    watched.waits(2)
    assert (shard.state().clock, log_of(shard)) == (0, [])
    right, right_out = asked(pool, shard, part(3, 13, [4, 5, 6], skipped=(4,)))
    expected = PushReply(
        status=PushStatus.APPLIED, version=Version(1, 1), staleness=0, fetched=Version(1, 1)
    )
    assert left.result(60) == right.result(60) == expected
    assert silent.result(60) == replace(expected, fetched=None)
    assert (left_out.tolist(), right_out.tolist()) == ([-1.0, -2.0], [-4.0, -5.0, -6.0])
    assert fetch(shard) == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    state = shard.state()
    assert (state.clock, state.examples, state.skipped, state.applied) == (1, 10, 1, ((3, 4),))
    assert (state.repeated, state.refused, state.staleness) == (0, {}, {0: 1})
    (entry,) = log_of(shard)
    assert entry == LogEntry(
        item=3, clock=1, base=(1, 0), rate=1.0, replica=0, examples=10, skipped=(4,)
    )


@pytest.mark.parametrize(
    ("bases", "base", "stale"),
    [
        ([Version(2, 1), Version(2, 0)], (2, 0), 2),
        ([Version(2, 1), Version(2, 2)], (2, 1), 1),
        ([Version(2, 1), Version(1, 90)], (1, 90), None),
    ],
)
def test_a_push_in_parts_is_as_old_as_its_oldest_part(
    bases: list[Version],
    base: tuple[int, int],
    stale: int | None,
    start: Start,
    part: MakePart,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
    watched: Watched,
) -> None:
    shard = start(incarnation=2)
    here: dict[str, Any] = {"incarnation": 2}
    for item in (0, 1):
        shard.push(make_push(item, size=SIZE, begin=10, base=Version(2, 0), **here))
    waiting = pool.submit(shard.push, part(2, 10, [1, 1], base=bases[0], **here))
    watched.waits()
    reply = shard.push(part(2, 12, [1] * 4, base=bases[1], **here))
    assert waiting.result(60) == reply
    assert (reply.status, reply.staleness) == (PushStatus.APPLIED, stale)
    assert log_of(shard)[-1].base == base


def test_a_push_of_the_whole_range_waits_for_nobody(
    start: Start, part: MakePart, make_push: MakePush, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    half = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    reply = shard.push(make_push(1, size=SIZE, begin=10))
    assert (reply.status, half.done()) == (PushStatus.APPLIED, False)
    assert shard.push(part(0, 12, [1] * 4)).status is PushStatus.APPLIED
    assert half.result(60).version == Version(1, 2)


def test_vectors_of_joints_are_used_again(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    addresses = set()
    for item in range(5):
        waiting = pool.submit(shard.push, part(item, 10, [1, 1]))
        watched.waits()
        shard.push(part(item, 12, [1] * 4))
        waiting.result(60)
        parts = shard._pushes._parts
        (vector,) = parts._free
        addresses.add(vector.data_ptr())
        assert (parts._joints, parts._callers) == ({}, set())
    assert len(addresses) == 1


# Items that are there already


def test_a_part_of_an_item_that_is_there_is_answered_at_once(
    start: Start, part: MakePart, make_push: MakePush, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    shard.push(make_push(0, size=SIZE, begin=10))
    shard.set_aside((1,), "norm")
    at_hand = pool.submit(shard.push, part(5, 10, [1, 1], lease=9))
    watched.waits()
    for lease in (1, 30):  # neither an older nor a later one disturbs the joint at hand
        out = torch.full((2,), 7.0)
        reply = shard.push(part(0, 12, [NAN, 1], lease=lease), fetch_into=out)
        assert reply == PushReply(
            status=PushStatus.ALREADY_APPLIED, version=Version(1, 1), fetched=Version(1, 1)
        )
        assert out.tolist() == [-1.0, -1.0]
        assert shard.push(part(1, 12, [1], lease=lease)).status is PushStatus.SET_ASIDE
    assert shard.push(part(5, 12, [1] * 4, lease=9)).status is PushStatus.APPLIED
    assert at_hand.result(60).status is PushStatus.APPLIED
    assert shard.state().repeated == 2


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_joint_whose_item_another_replica_brings_is_dropped_at_once(
    in_parts: bool,
    start: Start,
    part: MakePart,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
    watched: Watched,
) -> None:
    shard = start()
    first, first_out = asked(pool, shard, part(4, 10, [50, 50]))
    second, second_out = asked(pool, shard, part(4, 14, [50, 50]))
    watched.waits(2)
    if in_parts:
        other = pool.submit(shard.push, part(4, 10, [1] * 3, replica=1, lease=90))
        watched.waits()
        assert shard.push(part(4, 13, [1] * 3, replica=1, lease=90)).status is PushStatus.APPLIED
        assert other.result(60).status is PushStatus.APPLIED
    else:
        reply = shard.push(make_push(4, size=SIZE, begin=10, replica=1, lease=90))
        assert reply.status is PushStatus.APPLIED
    expected = PushReply(
        status=PushStatus.ALREADY_APPLIED, version=Version(1, 1), fetched=Version(1, 1)
    )
    assert first.result(60) == second.result(60) == expected
    assert first_out.tolist() == second_out.tolist() == [-1.0, -1.0]
    assert fetch(shard) == [-1.0] * SIZE
    assert (shard.state().clock, shard.state().repeated) == (1, 1)
    assert shard._pushes._parts._joints == {}
    late = shard.push(part(4, 12, [50, 50]))
    assert late.status is PushStatus.ALREADY_APPLIED


def test_a_joint_whose_item_is_set_aside_is_dropped_at_once(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    waiting, out = asked(pool, shard, part(4, 10, [50, 50]))
    other = pool.submit(shard.push, part(7, 10, [1, 1], replica=1))
    watched.waits(2)
    shard.set_aside((3, 4), "norm, 3 times")
    assert waiting.result(60) == PushReply(
        status=PushStatus.SET_ASIDE, version=Version(1, 0), fetched=Version(1, 0)
    )
    assert (out.tolist(), other.done()) == ([0.0, 0.0], False)
    assert shard.push(part(7, 12, [1] * 4, replica=1)).status is PushStatus.APPLIED
    assert other.result(60).status is PushStatus.APPLIED


# The same part again


def test_a_retry_takes_the_place_of_the_call_before(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    gone, gone_out = asked(pool, shard, part(0, 10, [50, 50]))
    watched.waits()
    again, again_out = asked(pool, shard, part(0, 10, [1, 2]))
    watched.waits()
    reply = shard.push(part(0, 12, [3] * 4))
    assert reply.status is PushStatus.APPLIED
    assert gone.result(60) == again.result(60) == replace(reply, fetched=reply.version)
    assert gone_out.tolist() == again_out.tolist() == [-1.0, -2.0]
    assert (shard.state().clock, shard.state().repeated) == (1, 0)


def test_a_retry_after_the_answer_is_a_repeat(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    lost = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    shard.push(part(0, 12, [1] * 4))
    lost.result(60)
    reply = shard.push(part(0, 10, [1, 1]))
    assert (reply.status, shard.state().repeated) == (PushStatus.ALREADY_APPLIED, 1)


def test_who_waits_too_long_may_try_again(start: Start, part: MakePart) -> None:
    shard = start(parts_wait_s=0.01, index=3, n_shards=4)
    out = torch.full((2,), 7.0)
    for begin in (10, 12, 10):
        with pytest.raises(TransportError) as caught:
            shard.push(part(5, begin, [1, 1]), fetch_into=out)
        assert vars(caught.value) == {
            "shard": 3,
            "code": "PARTS",
            "detail": "no other parts of item 5 for 0.01 s",
        }
    assert shard._pushes._parts._callers == set()
    # Their parts have stayed; what comes last finds them there.
    assert shard.push(part(5, 14, [1, 1])).status is PushStatus.APPLIED
    assert fetch(shard) == [-1.0] * SIZE
    assert out.tolist() == [7.0, 7.0]  # nobody's any more
    assert shard.push(part(5, 10, [1, 1])).status is PushStatus.ALREADY_APPLIED


def test_an_answer_that_comes_as_the_time_is_up_is_the_answer(
    start: Start,
    part: MakePart,
    pool: ThreadPoolExecutor,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = start()
    wait = Caller.wait

    def late(caller: Caller, seconds: float | None = None) -> PushReply:
        reply = wait(caller, None)
        if seconds is not None:
            raise TimeoutError
        return reply

    monkeypatch.setattr(Caller, "wait", late)
    first, out = asked(pool, shard, part(0, 10, [1, 1]))
    watched.waits()
    reply = shard.push(part(0, 12, [1] * 4))
    assert reply.status is PushStatus.APPLIED
    assert first.result(60) == replace(reply, fetched=Version(1, 1))
    assert out.tolist() == [-1.0, -1.0]


# Refusals


def everything(shard: Shard) -> tuple[Any, ...]:
    """All state but the counts of refusals and of bytes sent."""
    state = replace(shard.state(), refused={}, nbytes_sent=0)
    return state, fetch(shard), log_of(shard), bytes(shard._contents.image()[-8 * SIZE :])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient": torch.tensor([1.0, NAN])}, Refusal.NOT_FINITE),
        ({"gradient": torch.tensor([1e30, -float("inf")])}, Refusal.NOT_FINITE),
        ({"gradient": torch.tensor([9.0, 99.0])}, Refusal.NORM),
        ({"gradient": torch.tensor([8.5, 0.0])}, Refusal.NORM),  # only together with the others
        ({"rate": -1.0}, Refusal.RATE),
        ({"layout": "other"}, Refusal.LAYOUT),
        ({"incarnation": 2}, Refusal.INCARNATION),
        ({"base": Version(1, 99)}, Refusal.INCARNATION),
        ({"base": Version(2, 0)}, Refusal.INCARNATION),
        ({"base": Version(1, 0)}, Refusal.STALE),
        ({"rate": 0.5}, Refusal.LEASE),
        ({"examples": 9}, Refusal.LEASE),
        ({"skipped": (7,)}, Refusal.LEASE),
    ],
)
def test_a_part_that_is_refused_refuses_all(
    changes: dict[str, Any],
    reason: Refusal,
    last: bool,
    start: Start,
    part: MakePart,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
    watched: Watched,
) -> None:
    optimizer = OptimizerConfig(
        momentum=0.5, weight_decay=0.0, kernel="unfused", max_norm=10.0, max_staleness=1
    )
    shard = start(optimizer=optimizer)
    for item in (0, 1):
        shard.push(make_push(item, size=SIZE, begin=10, base=Version(1, item)))
    before = everything(shard)
    base = Version(1, 2)
    good = [part(5, 12, [4, 4], base=base), part(5, 14, [1, 1], base=base)]
    bad = replace(part(5, 10, [0, 0], base=base), **changes)
    pushes = [*good, bad] if last else [bad, *good]
    answers = [asked(pool, shard, push) for push in pushes]
    replies = [answer.result(60) for answer, _ in answers]
    assert {(r.status, r.refusal, r.version, r.fetched) for r in replies} == {
        (PushStatus.REFUSED, reason, Version(1, 2), None)
    }
    assert all(reply == replies[0] for reply in replies)
    assert replies[0].detail
    assert [out.tolist() for _, out in answers] == [[7.0, 7.0]] * 3
    assert shard.state().refused == {reason.value: 1}
    assert everything(shard) == before
    # A retry, whose answer was lost, is refused again; the item may come under another lease.
    assert shard.push(good[0]) == replies[0]
    assert shard.state().refused == {reason.value: 1}
    again = [replace(push, lease=99) for push in good]
    rest = part(5, 10, [1, 1], base=base, lease=99)
    waiting = [pool.submit(shard.push, push) for push in again]
    assert shard.push(rest).status is PushStatus.APPLIED
    assert {answer.result(60).status for answer in waiting} == {PushStatus.APPLIED}


@pytest.mark.parametrize(("begin", "n"), [(10, 1), (10, 3), (11, 1), (11, 2), (11, 5)])
def test_parts_that_overlap_are_refused(
    begin: int, n: int, start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    waiting = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    reply = shard.push(part(0, begin, [1] * n))
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, Refusal.SIZE)
    assert reply.detail == f"part [{begin}, {begin + n}) overlaps part [10, 12)"
    assert waiting.result(60) == reply
    assert fetch(shard) == [0.0] * SIZE


@pytest.mark.parametrize(("begin", "n"), [(9, 3), (9, 1), (14, 3), (16, 1), (12, 0)])
def test_a_range_beyond_the_shard_is_refused_by_itself(
    begin: int, n: int, start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    waiting = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    reply = shard.push(part(0, begin, [1] * n))
    assert (reply.refusal, waiting.done()) == (Refusal.SIZE, False)
    assert reply.detail == f"range [{begin}, {begin + n}), this shard has [10, 16)"
    assert shard.push(part(0, 12, [1] * 4)).status is PushStatus.APPLIED
    assert waiting.result(60).status is PushStatus.APPLIED


# Leases


@pytest.mark.parametrize("item", [0, 1])
def test_a_later_lease_takes_the_place_of_an_earlier_one(
    item: int, start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    first, first_out = asked(pool, shard, part(0, 10, [50, 50], lease=4))
    second = pool.submit(shard.push, part(0, 12, [50, 50], lease=4))
    foreign = pool.submit(shard.push, part(0, 10, [60, 60], lease=3, replica=1))
    watched.waits(3)
    present = pool.submit(shard.push, part(item, 14, [1, 1], lease=5))
    watched.waits()
    assert first.result(60) == second.result(60)
    assert first.result(60) == PushReply(
        status=PushStatus.REFUSED,
        version=Version(1, 0),
        refusal=Refusal.LEASE,
        detail="its replica has gone on to another lease",
    )
    assert first_out.tolist() == [7.0, 7.0]
    assert shard.state().refused == {"lease": 1}
    late = shard.push(part(0, 14, [50, 50], lease=4))
    assert (late.status, late.refusal) == (PushStatus.REFUSED, Refusal.LEASE)
    assert late.detail == "of lease 4, its replica has gone on to 5"
    assert shard.state().refused == {"lease": 2}
    assert not present.done()
    assert not foreign.done()
    assert shard.push(part(item, 10, [1] * 4, lease=5)).status is PushStatus.APPLIED
    assert present.result(60).status is PushStatus.APPLIED
    assert fetch(shard) == [-1.0] * SIZE


def test_another_item_of_the_same_lease_takes_the_place_too(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    waiting = pool.submit(shard.push, part(0, 10, [1, 1], lease=4))
    watched.waits()
    present = pool.submit(shard.push, part(1, 10, [1, 1], lease=4))
    watched.waits()
    assert waiting.result(60).refusal is Refusal.LEASE
    assert shard.push(part(1, 12, [1] * 4, lease=4)).status is PushStatus.APPLIED
    assert present.result(60).status is PushStatus.APPLIED


def test_a_refused_joint_is_no_hindrance_to_the_next(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    assert shard.push(part(0, 10, [NAN, 1])).refusal is Refusal.NOT_FINITE
    waiting = pool.submit(shard.push, part(1, 10, [1, 1]))
    watched.waits(2)
    assert shard.push(part(0, 12, [1] * 4)).refusal is Refusal.LEASE
    assert shard.push(part(1, 12, [1] * 4)).status is PushStatus.APPLIED
    assert waiting.result(60).status is PushStatus.APPLIED
    assert shard.state().refused == {"not_finite": 1, "lease": 1}


# Pauses


def test_a_joint_of_a_new_item_is_held_as_a_whole(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    before = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    shard.pause(LONG_S)
    last, out = asked(pool, shard, part(0, 12, [1] * 4))  # may join, and completes it
    watched.held()
    assert (shard.state().clock, before.done(), last.done()) == (0, False, False)
    file = shard.save(0, (), LONG_S)
    assert (file.state.clock, file.state.applied) == (0, ())
    assert before.result(60).status is PushStatus.APPLIED
    assert last.result(60).fetched == Version(1, 1)
    assert out.tolist() == [-1.0] * 4


def test_a_half_that_a_snapshot_waits_for_can_be_made_whole(
    start: Start, part: MakePart, make_push: MakePush, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    half = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    shard.pause(LONG_S)
    watched.paused()
    saving = pool.submit(shard.save, 0, ((0, 1),), LONG_S)
    watched.paused()
    new = pool.submit(shard.push, make_push(3, size=SIZE, begin=10, replica=1))
    watched.held()
    assert shard.push(part(0, 12, [1] * 4)).status is PushStatus.APPLIED
    file = saving.result(60)
    assert (file.state.applied, file.state.clock) == (((0, 1),), 1)
    assert half.result(60).version == Version(1, 1)
    assert new.result(60).status is PushStatus.APPLIED


@pytest.mark.parametrize("how", ["refused", "displaced", "stale"])
def test_a_joint_that_comes_to_nothing_ends_the_pause_that_waits_for_it(
    how: str,
    start: Start,
    part: MakePart,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
    watched: Watched,
) -> None:
    optimizer = OptimizerConfig(max_staleness=0, kernel="unfused")
    shard = start(optimizer=optimizer)
    shard.push(make_push(9, size=SIZE, begin=10))
    old = Version(1, 0)
    half = pool.submit(
        shard.push, part(0, 10, [1, 1], base=old if how == "stale" else Version(1, 1))
    )
    watched.waits()
    shard.pause(LONG_S)
    watched.paused()
    saving = pool.submit(shard.save, 0, ((0, 1), (9, 10)), LONG_S)
    watched.paused()
    if how == "displaced":
        pool.submit(shard.push, part(1, 10, [1, 1], base=Version(1, 1)))
    else:
        value = NAN if how == "refused" else 1.0
        assert shard.push(part(0, 12, [value] * 4, base=Version(1, 1))).refusal is not None
    assert half.result(60).status is PushStatus.REFUSED
    assert saving.result(60).state.applied == ((9, 10),)


def test_a_complete_joint_that_is_held_is_dropped_when_the_item_comes_from_elsewhere(
    start: Start, part: MakePart, make_push: MakePush, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    first = pool.submit(shard.push, part(0, 10, [50, 50]))
    watched.waits()
    shard.pause(LONG_S)
    watched.paused()
    last = pool.submit(shard.push, part(0, 12, [50] * 4))
    watched.held()
    saving = pool.submit(shard.save, 0, ((0, 2),), LONG_S)
    watched.paused()
    # The other pause admits it: both race for it, and one of them is applied.
    reply = shard.push(make_push(0, 50.0, size=SIZE, begin=10, replica=1))
    statuses = sorted(str(r.status) for r in (reply, first.result(60), last.result(60)))
    assert statuses in (
        ["already_applied", "already_applied", "applied"],
        ["already_applied", "applied", "applied"],
    )
    assert first.result(60) == last.result(60)
    shard.push(make_push(1, size=SIZE, begin=10))
    assert saving.result(60).state.applied == ((0, 2),)
    assert fetch(shard) == [-51.0] * SIZE


def test_a_complete_joint_that_is_held_may_be_set_aside(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    first = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    shard.pause(LONG_S)
    last = pool.submit(shard.push, part(0, 12, [1] * 4))
    watched.held()
    shard.set_aside((0,), "norm")
    assert first.result(60).status is PushStatus.SET_ASIDE
    shard.save(0, (), LONG_S)
    assert last.result(60) == first.result(60)
    assert fetch(shard) == [0.0] * SIZE


# The end


def end_of(future: "Future[Any]") -> str:
    error = future.exception(60)
    assert isinstance(error, ProcessLostError)
    return str(error)


def test_closing_frees_those_who_wait(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    waiting = [pool.submit(shard.push, part(0, 10, [1, 1], replica=r)) for r in (0, 0, 1)]
    watched.waits(3)
    shard.close()
    assert {end_of(call) for call in waiting} == {"shard 0 was lost: it does not run"}
    with pytest.raises(ProcessLostError, match="it does not run"):
        shard.push(part(0, 12, [1] * 4))


def test_a_complete_joint_that_is_held_ends_with_the_shard(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start()
    shard.pause(LONG_S)
    calls = [pool.submit(shard.push, part(0, 10, [1, 1]))]
    watched.waits()
    calls.append(pool.submit(shard.push, part(0, 12, [1] * 4)))
    watched.held()
    shard.close()
    assert {end_of(call) for call in calls} == {"shard 0 was lost: it does not run"}


def test_a_shard_that_is_lost_loses_those_who_wait_too(
    start: Start,
    part: MakePart,
    pool: ThreadPoolExecutor,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = start()
    calls = [
        pool.submit(shard.push, part(0, 10, [1, 1])),
        pool.submit(shard.push, part(0, 10, [1, 1], replica=1)),  # of the item that fails
        pool.submit(shard.push, part(5, 10, [1, 1], replica=2)),  # of another one
    ]
    watched.waits(3)

    def full(entry: LogEntry) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard._log, "append", full)
    calls.append(pool.submit(shard.push, part(0, 12, [1] * 4)))
    assert {end_of(call) for call in calls} == {
        "shard 0 was lost: its push log cannot be written: No space left on device; "
        "make room in the run's folder"
    }
    with pytest.raises(ProcessLostError, match="No space left"):
        shard.push(part(7, 10, [1, 1]))
    shard.close()


def test_a_shard_that_has_not_begun_says_so(make_spec: MakeSpec, part: MakePart) -> None:
    shard = Shard(make_spec(SIZE, begin=10))
    with pytest.raises(ProcessLostError, match="shard 0 was lost: it does not run"):
        shard.push(part(0, 10, [1, 1]))


def test_before_the_initial_values_come_no_part_is_taken(
    make_spec: MakeSpec, part: MakePart
) -> None:
    with Shard(make_spec(SIZE, begin=10)) as shard:
        with pytest.raises(ShardRefusedError, match="no initial values") as caught:
            shard.push(part(0, 10, [1, 1]))
        assert caught.value.reason == Refusal.NOT_LOADED
        assert shard._pushes._parts._joints == {}


class StuckValues:
    """Initial values that hold the writer up until they are released, and are then refused."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def numel(self) -> int:
        self.reached.set()
        assert self.released.wait(60)
        return -1


def test_a_full_queue_leaves_the_joint_for_the_next_try(
    start: Start, part: MakePart, pool: ThreadPoolExecutor, watched: Watched
) -> None:
    shard = start(busy_after_s=0.01, n_ports=1)
    first = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()
    stuck = StuckValues()
    pool.submit(shard.load, stuck)
    assert stuck.reached.wait(60)
    fillers = [pool.submit(shard.state) for _ in range(10)]
    while shard._writer.queued < 10:  # until all are in the queue
        pass
    with pytest.raises(TransportError) as caught:
        shard.push(part(0, 12, [1] * 4))
    assert (caught.value.code, first.done()) == ("BUSY", False)
    stuck.released.set()
    assert {filler.result(60).clock for filler in fillers} == {0}
    assert shard.push(part(0, 12, [1] * 4)).status is PushStatus.APPLIED
    assert first.result(60).version == Version(1, 1)
    assert fetch(shard) == [-1.0] * SIZE


def test_a_busy_shard_that_has_answered_all_the_same_is_believed(
    start: Start,
    part: MakePart,
    pool: ThreadPoolExecutor,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = start()
    first = pool.submit(shard.push, part(0, 10, [1, 1]))
    watched.waits()

    def busy(work: Callable[[], Any]) -> Any:
        monkeypatch.undo()
        shard.set_aside((0,), "norm")
        raise TransportError(0, "BUSY", "no room")

    monkeypatch.setattr(shard._writer, "ask", busy)
    assert shard.push(part(0, 12, [1] * 4)).status is PushStatus.SET_ASIDE
    assert first.result(60).status is PushStatus.SET_ASIDE


# Many threads


def test_stages_that_race_with_retries_apply_each_item_once(
    start: Start, make_push: MakePush, in_threads: Callable[..., list[Any]]
) -> None:
    n_items, n_replicas = 40, 3
    cuts = [(10, 12, 16), (10, 11, 16), (10, 14, 16)]
    shard = start(n_ports=2 * n_replicas, parts_wait_s=60.0)
    # The stages of a replica bring one item after the other, in the same order.
    orders = [[(7 * i + r) % n_items for i in range(n_items)] for r in range(n_replicas)]

    def stage(replica: int, number: int) -> list[PushReply]:
        begin, end = cuts[replica][number : number + 2]
        replies = []
        for lease, item in enumerate(orders[replica]):
            push = make_push(
                item,
                float(2 ** (item % 5)),
                size=end - begin,
                begin=begin,
                replica=replica,
                lease=lease,
            )
            out = torch.empty(end - begin)
            replies.append(shard.push(push, fetch_into=out))
            assert replies[-1].fetched is not None
            assert torch.equal(out, out[:1].expand(end - begin))  # of one clock
        return replies

    stages = [(r, number) for r in range(n_replicas) for number in range(2)]
    results = in_threads([lambda s=s: stage(*s) for s in stages])
    assert {reply.refusal for replies in results for reply in replies} == {None}
    state = shard.state()
    assert (state.clock, state.applied) == (n_items, ((0, n_items),))
    assert fetch(shard) == [-float(sum(2 ** (i % 5) for i in range(n_items)))] * SIZE
    assert sorted(entry.item for entry in log_of(shard)) == list(range(n_items))
    applied = [
        {
            item
            for item, reply in zip(orders[r], replies, strict=True)
            if reply.status is PushStatus.APPLIED
        }
        for (r, _), replies in zip(stages, results, strict=True)
    ]
    # Both stages of a replica were told the same of each item.
    assert applied[0::2] == applied[1::2]
    assert sum(len(items) for items in applied[0::2]) == n_items
    assert shard._pushes._parts._joints == {}
