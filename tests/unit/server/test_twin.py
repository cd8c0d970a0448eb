"""A twin: bit for bit its primary, nobody's servant until it is promoted, and then all there is."""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.faults.points import Fault
from distbelief.layout import Segment
from distbelief.server.pushlog import LogEntry, LogHeader, SetAside, read_log
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import views
from distbelief.services import TwinService
from distbelief.storage import LocalStorage
from distbelief.types import Push, PushStatus, Refusal, Version

MakeSpec = Callable[..., ShardSpec]
MakePush = Callable[..., Push]
NAN = float("nan")


class Wire:
    """The way to a twin, which may lose answers, or fall silent until it is cut."""

    def __init__(self, twin: TwinService) -> None:
        self.twin = twin
        self.silent = False
        self.answers_to_lose = 0
        self.calls: list[str] = []
        self.reached = threading.Semaphore(0)
        self.cut = threading.Event()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut.set()

    def _pass(self, name: str, *arguments: Any, **more: Any) -> Any:
        self.calls.append(name)
        self.reached.release()
        if self.silent:
            assert self.cut.wait(60)
        if self.cut.is_set():
            raise TransportError(0, "CANCELLED", "cut")
        answer = getattr(self.twin, name)(*arguments, **more)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise TransportError(0, "UNAVAILABLE", "lost on its way")
        return answer

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        found: int = self._pass("adopt", state, source)
        return found

    def mirror(self, push: Push, *, clock: int, staleness: int | None) -> None:
        self._pass("mirror", push, clock=clock, staleness=staleness)

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        self._pass("mirror_set_aside", items, reason)


class Bench:
    """Shards of one range in one process, and the ways between them, by incarnation."""

    def __init__(self, stack: ExitStack, make_spec: MakeSpec) -> None:
        self._stack, self._make_spec = stack, make_spec
        self._shards: dict[str, Shard] = {}
        self.wires: list[Wire] = []

    def _connect(self, address: str) -> AbstractContextManager[TwinService]:
        self.wires.append(Wire(self._shards[address]))
        return self.wires[-1]

    @property
    def wire(self) -> Wire:
        return self.wires[-1]

    def start(self, incarnation: int = 1, size: int = 4, **changes: Any) -> Shard:
        spec = self._make_spec(size, incarnation=incarnation, **changes)
        shard = self._stack.enter_context(Shard(spec, connect=self._connect))
        self._shards[str(incarnation)] = shard
        return shard

    def pair(self, **changes: Any) -> tuple[Shard, Shard]:
        """A primary, loaded with zeros, that feeds a twin."""
        primary = self.start(1, **changes)
        primary.load(torch.zeros(primary.spec.size))
        twin = self.start(2, **{**changes, "twin": True})
        primary.feed_twin("2")
        return primary, twin


@pytest.fixture
def bench(make_spec: MakeSpec) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, make_spec)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def held(shard: Shard) -> dict[str, Any]:
    """All that a shard holds, but for the counts of what came to it alone."""
    saved = views(shard._writer.ask(shard._contents.image))
    own = {"repeated": None, "refused": None}
    return {
        "account": {**saved.about["account"], **own},
        "average": saved.about["average"],
        "tensors": {name: t.numpy().tobytes() for name, t in saved.tensors.items()},
    }


def log_of(shard: Shard) -> tuple[LogHeader, list[LogEntry | SetAside]]:
    shard.state()  # hands it to the system
    name = LogHeader(
        shard=0, n_shards=1, begin=0, end=4, incarnation=shard.spec.incarnation
    ).file_name
    header, entries = read_log(shard.spec.storage, name)
    return header, list(entries)


def end_of(future: "Future[Any]") -> str:
    return type(future.exception(60)).__name__


# The same as its primary

Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "parts", "aside", "poison", "feed"]),
        st.integers(0, 12),
    ),
    max_size=25,
)
rules = st.sampled_from(
    [
        OptimizerConfig(momentum=0.9, weight_decay=0.01, kernel="unfused"),
        OptimizerConfig(momentum=0.9, weight_decay=0.01, kernel="fused"),
        OptimizerConfig(rule="nesterov", momentum=0.5, kernel="unfused"),
        OptimizerConfig(rule="adagrad"),
    ]
)
averages = st.sampled_from(
    [
        AveragingConfig(average="none"),
        AveragingConfig(average="uniform", average_tail=0.9, average_every=2),
        AveragingConfig(average="exponential", average_every=1),
    ]
)


@settings(deadline=None, max_examples=40)
@given(steps, rules, averages, st.integers(0, 2**32 - 1))
def test_whatever_happens_it_is_bit_for_bit_its_primary(
    happens: list[Step], optimizer: OptimizerConfig, averaging: AveragingConfig, seed: int
) -> None:
    size, random = 37, torch.Generator().manual_seed(seed)
    segments = (Segment(0, 20, 1.0, 1.0), Segment(20, size, 2.0, 0.0))

    def spec(incarnation: int, folder: str) -> ShardSpec:
        return ShardSpec(
            index=0,
            n_shards=1,
            begin=0,
            end=size,
            segments=segments,
            layout="layout",
            incarnation=incarnation,
            examples_per_item=10,
            total_examples=200,
            n_ports=2,
            optimizer=optimizer,
            averaging=averaging,
            storage=LocalStorage(Path(folder)),
            twin=incarnation == 2,
        )

    def push_of(item: int, shard: Shard, scale: float = 1.0) -> Push:
        return Push(
            item=item,
            lease=item,
            replica=0,
            begin=0,
            incarnation=1,
            base=Version(1, max(0, shard.version.clock - item % 3)),
            rate=0.1 + item / 7,
            examples=10 - item % 2,
            skipped=(item,) * (item % 2),
            layout="layout",
            gradient=torch.randn(size, generator=random) * scale,
        )

    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(2) as pool,
        Shard(spec(2, folder)) as twin,
        Shard(spec(1, folder), connect=lambda _: Wire(twin)) as primary,
    ):
        primary.load(torch.randn(size, generator=random))
        for what, item in [
            *happens[: len(happens) // 2],
            ("feed", 0),
            *happens[len(happens) // 2 :],
        ]:
            if what == "feed":
                primary.feed_twin("twin")
            elif what == "aside":
                primary.set_aside((item, item + 1), f"reason {item}")
            elif what == "parts":
                whole = push_of(item, primary)
                parts = [
                    replace(whole, begin=b, gradient=whole.gradient[b:e].clone())
                    for b, e in ((0, 11), (11, size))
                ]
                for future in [pool.submit(primary.push, part) for part in parts]:
                    future.result(60)
            else:
                primary.push(push_of(item, primary, NAN if what == "poison" else 1.0))
        assert held(twin) == held(primary)
        before = held(primary)
        twin.promote()
        assert held(twin) == before
        push = replace(push_of(99, twin), incarnation=2)
        same = replace(push, incarnation=1, gradient=push.gradient.clone())
        primary.release_twin()
        assert twin.push(push).status is primary.push(same).status is PushStatus.APPLIED
        assert held(twin)["tensors"] == held(primary)["tensors"]


def test_its_log_begins_where_it_was_fed(bench: Bench, make_push: MakePush) -> None:
    primary = bench.start(1)
    primary.load(torch.zeros(4))
    for item in (0, 1, 4):
        primary.push(make_push(item))
    primary.set_aside((2, 3), "why")
    twin = bench.start(2, twin=True)
    assert twin.spec.storage.logs("pushes") == ["shard-00000-of-00001.0001.jsonl"]
    assert primary.feed_twin("2") == Version(1, 3)
    assert len(log_of(primary)[1]) == 5
    primary.push(make_push(5, base=Version(1, 2)))
    primary.set_aside((7,), "another")
    header, entries = log_of(twin)
    assert header == LogHeader(
        shard=0,
        n_shards=1,
        begin=0,
        end=4,
        incarnation=2,
        clock=3,
        sources=((0, 1, 1, 3),),
        set_aside=(2, 3),
    )
    assert entries == log_of(primary)[1][5:]
    assert [type(entry) for entry in entries] == [LogEntry, SetAside]


def test_what_its_log_rests_on_is_durable_before_it_is_fed(
    bench: Bench, make_push: MakePush, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = bench.start(1)
    primary.load(torch.zeros(4))
    twin = bench.start(2, twin=True)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(primary._log, "sync", full)
        with pytest.raises(ShardRefusedError, match="No space left") as caught:
            primary.feed_twin("2")
    assert caught.value.reason == "cannot_save"
    assert (primary.state().twin, twin.state().loaded) == (0, False)
    assert primary.push(make_push(0)).status is PushStatus.APPLIED


def test_a_mirrored_gradient_is_as_it_was(bench: Bench, make_push: MakePush) -> None:
    _, twin = bench.pair(optimizer=OptimizerConfig(rule="adagrad", weight_decay=0.5))
    push = make_push(0, [1.0, 2.0, 3.0, 4.0])
    twin.mirror(push, clock=1, staleness=0)
    assert push.gradient.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert twin.state().clock == 1


def test_states_tell_who_follows_whom(bench: Bench) -> None:
    primary, twin = bench.pair()
    assert (primary.state().twin, primary.state().follows) == (2, 0)
    assert (twin.state().twin, twin.state().follows) == (0, 1)
    twin.promote()
    assert (twin.state().twin, twin.state().follows) == (0, 0)
    primary.release_twin()
    assert primary.state().twin == 0


# Nobody's servant, until it is promoted

CALLS: dict[str, Callable[[Shard, Push], object]] = {
    "fetch": lambda shard, push: shard.fetch(torch.empty(4), begin=0),
    "push": lambda shard, push: shard.push(push),
    "part": lambda shard, push: shard.push(replace(push, gradient=torch.ones(2))),
    "load": lambda shard, push: shard.load(torch.zeros(4)),
    "set_aside": lambda shard, push: shard.set_aside((1,), "why"),
    "pause": lambda shard, push: shard.pause(0.01),
    "save": lambda shard, push: shard.save(0, (), 0.0),
    "feed_twin": lambda shard, push: shard.feed_twin("1"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_twin_serves_nobody(
    call: Callable[[Shard, Push], object], bench: Bench, make_push: MakePush
) -> None:
    _, twin = bench.pair()
    before = held(twin)
    with pytest.raises(TransportError) as caught:
        call(twin, make_push(0, incarnation=2))
    assert caught.value.code == "TWIN"
    assert held(twin) == before
    twin.close()
    with pytest.raises(ProcessLostError):
        call(twin, make_push(0, incarnation=2))


def test_a_promoted_twin_goes_on_where_its_primary_was(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    primary.push(make_push(0))
    state = twin.promote()
    assert (state.clock, state.applied, state.incarnation) == (1, ((0, 1),), 2)
    assert twin.promote() == state  # again
    assert twin.push(make_push(1, incarnation=1)).refusal is Refusal.INCARNATION
    assert twin.push(make_push(0, incarnation=2)).status is PushStatus.ALREADY_APPLIED
    reply = twin.push(make_push(1, incarnation=2, base=Version(1, 1)))
    assert (reply.version, reply.staleness) == (Version(2, 2), None)
    reply = twin.push(make_push(2, incarnation=2, base=Version(2, 1)))
    assert (reply.version, reply.staleness) == (Version(2, 3), 1)
    file = twin.save(0, (), 0.0)
    assert (file.state.clock, file.state.incarnation) == (3, 2)
    header, entries = log_of(twin)
    assert (header.clock, [e.clock for e in entries if isinstance(e, LogEntry)]) == (0, [1, 2, 3])


def test_a_promoted_twin_can_have_a_twin(bench: Bench, make_push: MakePush) -> None:
    primary, second = bench.pair()
    primary.push(make_push(0))
    second.promote()
    third = bench.start(3, twin=True)
    assert second.feed_twin("3") == Version(2, 1)
    second.push(make_push(1, incarnation=2))
    assert held(third) == held(second)
    assert log_of(third)[0].sources == ((0, 1, 2, 1),)


def test_a_twin_without_a_state_cannot_be_promoted(bench: Bench) -> None:
    twin = bench.start(2, twin=True)
    with pytest.raises(ShardRefusedError) as caught:
        twin.promote()
    assert caught.value.reason == Refusal.NOT_LOADED
    assert twin.state().follows == 0


def test_a_shard_that_serves_is_promoted_already(bench: Bench) -> None:
    primary, _ = bench.pair()
    assert primary.promote() == primary.state()


# What it refuses


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ShardRefusedError) as caught:
        call()
    return caught.value.reason


def test_one_that_serves_follows_nobody(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    twin.promote()
    image = primary._contents.image()
    for shard in (bench.start(7), twin):
        before = held(shard)
        for call in (
            lambda shard=shard: shard.adopt(image, Version(1, 0)),
            lambda shard=shard: shard.mirror(make_push(0), clock=1, staleness=0),
            lambda shard=shard: shard.mirror_set_aside((0,), "why"),
        ):
            assert refusal(call) == "promoted"
        assert held(shard) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"item": 0, "clock": 3},  # a gap
        {"item": 2, "clock": 1},
        {"item": 0, "clock": 2},  # there already, at another clock
        {"item": 9, "clock": 2},  # set aside
        {"item": 1, "clock": 2, "incarnation": 3},
        {"item": 1, "clock": 2, "begin": 1},
        {"item": 1, "clock": 2, "gradient": [1.0] * 5},
        {"item": 1, "clock": 2, "layout": "other"},
    ],
)
def test_what_does_not_come_next_is_refused(
    changes: dict[str, Any], bench: Bench, make_push: MakePush
) -> None:
    primary, twin = bench.pair()
    primary.push(make_push(0))
    primary.set_aside((9,), "why")
    before = held(twin)
    fields = dict(changes)
    clock, gradient = fields.pop("clock"), fields.pop("gradient", 1.0)
    push = make_push(fields.pop("item"), gradient, **fields)
    assert refusal(lambda: twin.mirror(push, clock=clock, staleness=0)) == "follows_no_more"
    assert held(twin) == before


def test_without_a_state_it_follows_nobody(bench: Bench, make_push: MakePush) -> None:
    twin = bench.start(2, twin=True)
    push = make_push(0)
    assert refusal(lambda: twin.mirror(push, clock=1, staleness=0)) == "follows_no_more"
    assert refusal(lambda: twin.mirror_set_aside((0,), "why")) == "follows_no_more"
    assert not twin.state().loaded


def test_an_older_state_does_not_take_the_place_of_a_newer_one(
    bench: Bench, make_push: MakePush
) -> None:
    primary, twin = bench.pair()
    image = primary._writer.ask(primary._contents.image)
    primary.push(make_push(0))
    for source in (Version(1, 0), Version(0, 5), Version(2, 0)):  # the last is itself
        assert refusal(lambda source=source: twin.adopt(image, source)) == "follows_no_more"
    assert held(twin) == held(primary)


UNTOUCHED = "untouched"


def images(good: bytes, clock: int) -> dict[str, bytes]:
    """Damaged ones; of states of 4 elements."""
    n = 8 + int.from_bytes(good[:8], "little")
    head, rest = json.loads(good[8:n]), good[n:]

    def made(**changes: Any) -> bytes:
        text = json.dumps({**head, **changes}).encode()
        return len(text).to_bytes(8, "little") + text + rest

    about = json.loads(head["__metadata__"]["distbelief"])

    def told(**changes: Any) -> bytes:
        return made(__metadata__={"distbelief": json.dumps({**about, **changes})})

    account = about["account"]
    entry = head["momentum"]
    return {
        UNTOUCHED: made(),
        "nothing": b"",
        "no header": b"\xff" * 64,
        "no object": (2).to_bytes(8, "little") + b"[]",
        "short": good[:-4],
        "no metadata": made(__metadata__=None),
        "another vector": made(other=entry),
        "an average of another size": made(average={**entry, "data_offsets": [0, 8]}),
        "a vector less": made(momentum={**entry, "data_offsets": [0, 8]}),
        "another type": made(momentum={**entry, "dtype": "F64"}),
        "offsets beyond": made(momentum={**entry, "data_offsets": [16, 1 << 60]}),
        "offsets below": made(momentum={**entry, "data_offsets": [-16, 0]}),
        "offsets apart": made(momentum={**entry, "data_offsets": "ab"}),
        "no account": told(account=None),
        "an account that lacks something": told(account={"clock": 1}),
        "another clock": told(account={**account, "clock": clock + 1}),
        "another set": told(account={**account, "applied": [[0, 5]]}),
        "no average": told(average={}),
        "words": told(average={"weight": "much"}),
    }


NAMES = tuple(
    images(
        b'\x00\x01\x00\x00\x00\x00\x00\x00{"__metadata__": {"distbelief": "{\\"account\\": {}}"}, '
        b'"momentum": {}}'.ljust(8 + 256),
        0,
    )
)


@pytest.mark.parametrize("flaw", [name for name in NAMES if name != UNTOUCHED])
def test_what_is_no_state_is_refused_and_changes_nothing(
    flaw: str, bench: Bench, make_push: MakePush
) -> None:
    optimizer = OptimizerConfig(momentum=0.5, kernel="unfused")
    primary, twin = bench.pair(optimizer=optimizer)
    primary.push(make_push(0))
    good = bytes(primary._writer.ask(primary._contents.image))
    before, log = held(twin), log_of(twin)
    bad = images(good, 1)[flaw]
    assert refusal(lambda: twin.adopt(bad, Version(1, 1))) == "malformed"
    assert (held(twin), log_of(twin)) == (before, log)
    assert twin.adopt(images(good, 1)[UNTOUCHED], Version(1, 1)) == 2
    assert held(twin) == held(primary)


# A primary that feeds


def test_an_answer_that_was_lost_is_asked_for_again(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    bench.wire.answers_to_lose = 3
    assert primary.push(make_push(0)).status is PushStatus.APPLIED
    assert bench.wire.calls == ["adopt", *4 * ["mirror"]]
    bench.wire.answers_to_lose = 1
    primary.set_aside((5,), "why")
    assert bench.wire.calls[5:] == 2 * ["mirror_set_aside"]
    assert held(twin) == held(primary)
    assert len(log_of(twin)[1]) == 2


def test_only_what_changes_something_is_mirrored(bench: Bench, make_push: MakePush) -> None:
    primary, _ = bench.pair()
    primary.push(make_push(0))
    primary.push(make_push(0))
    primary.push(make_push(1, NAN))
    primary.set_aside((5, 5), "why")
    primary.set_aside((5, 0), "why")
    primary.fetch(torch.empty(4), begin=0)
    assert bench.wire.calls == ["adopt", "mirror", "mirror_set_aside"]


MIRRORED: dict[str, Callable[[Shard, Push], object]] = {
    "push": lambda shard, push: shard.push(push),
    "set_aside": lambda shard, push: shard.set_aside((0,), "why"),
}


@pytest.mark.parametrize("call", MIRRORED.values(), ids=MIRRORED)
def test_nothing_is_acknowledged_that_the_twin_does_not_have(
    call: Callable[[Shard, Push], object],
    bench: Bench,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
) -> None:
    primary, twin = bench.pair()
    bench.wire.reached = threading.Semaphore(0)
    bench.wire.silent = True
    waiting = pool.submit(call, primary, make_push(0))
    assert bench.wire.reached.acquire(timeout=60)
    assert not waiting.done()
    primary.release_twin()
    waiting.result(60)
    state = primary.state()
    assert (state.clock + len(state.set_aside), state.twin) == (1, 0)
    assert bench.wire.cut.is_set()
    assert twin.state().clock == len(twin.state().set_aside) == 0
    assert primary.push(make_push(1)).status is PushStatus.APPLIED


@pytest.mark.parametrize("end", [Shard.close, Shard.abandon])
@pytest.mark.parametrize("call", MIRRORED.values(), ids=MIRRORED)
def test_an_end_does_not_wait_for_the_twin_and_acknowledges_nothing(
    call: Callable[[Shard, Push], object],
    end: Callable[[Shard], None],
    bench: Bench,
    make_push: MakePush,
    pool: ThreadPoolExecutor,
) -> None:
    primary, _ = bench.pair()
    bench.wire.reached = threading.Semaphore(0)
    bench.wire.silent = True
    waiting = [pool.submit(call, primary, make_push(0)), pool.submit(primary.push, make_push(1))]
    assert bench.wire.reached.acquire(timeout=60)
    end(primary)
    assert [end_of(future) for future in waiting] == 2 * ["ProcessLostError"]
    primary.close()
    name = "shard-00000-of-00001.0001.jsonl"
    assert list(read_log(primary.spec.storage, name)[1]) == []


def test_after_its_end_nothing_is_acknowledged_either(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    primary.abandon()
    with pytest.raises(ProcessLostError, match="before its twin had an item"):
        primary.push(make_push(0))
    assert twin.state().clock == 0


def test_a_twin_that_comes_back_has_it_all(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    primary, twin = bench.pair()
    lost = bench.wire.twin
    bench.wire.twin = bench.start(5)
    bench.wire.twin.close()  # it answers as a process that is no more
    bench.wire.reached = threading.Semaphore(0)
    waiting = pool.submit(primary.push, make_push(0))
    for _ in range(2):
        assert bench.wire.reached.acquire(timeout=60)
    assert not waiting.done()
    bench.wire.twin = lost
    assert waiting.result(60).status is PushStatus.APPLIED
    assert held(twin) == held(primary)


def test_a_primary_whose_twin_was_promoted_ends(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    primary.push(make_push(0))
    twin.promote()
    before = held(primary)
    calls: list[Callable[[], object]] = [
        lambda: primary.push(make_push(1)),
        primary.state,
        lambda: primary.push(make_push(0)),
    ]
    for call in calls:
        with pytest.raises(ProcessLostError, match="lost: its twin serves in its place"):
            call()
    assert primary.failure == "its twin serves in its place"
    assert twin.state().clock == 1
    primary.close()
    assert before["account"]["clock"] == primary.version.clock


def test_a_primary_that_is_to_feed_one_that_serves_ends(bench: Bench) -> None:
    primary = bench.start(1)
    primary.load(torch.zeros(4))
    bench.start(2)
    with pytest.raises(ProcessLostError, match="its twin serves in its place"):
        primary.feed_twin("2")
    assert primary.failure == "its twin serves in its place"


def test_a_shard_cannot_feed_itself(bench: Bench, make_push: MakePush) -> None:
    _, twin = bench.pair()
    twin.promote()
    assert refusal(lambda: twin.feed_twin("2")) == "follows_no_more"
    assert twin.push(make_push(0, incarnation=2)).status is PushStatus.APPLIED


def test_a_twin_that_can_follow_no_more_is_dropped(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    bench.wire.twin = bench.start(5, twin=True)  # has no state
    assert primary.push(make_push(0)).status is PushStatus.APPLIED
    assert primary.state().twin == 0
    assert bench.wire.cut.is_set()
    assert primary.feed_twin("2") == Version(1, 1)
    assert held(twin) == held(primary)


def test_a_twin_that_is_fed_again_begins_its_log_anew(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    primary.push(make_push(0))
    primary.release_twin()
    primary.push(make_push(1))
    assert primary.feed_twin("2") == Version(1, 2)
    primary.push(make_push(2))
    header, entries = log_of(twin)
    assert (header.clock, header.sources) == (2, ((0, 1, 1, 2),))
    assert [e.item for e in entries if isinstance(e, LogEntry)] == [2]


def test_an_average_that_had_begun_is_forgotten_with_its_state(
    bench: Bench, make_push: MakePush
) -> None:
    averaging = AveragingConfig(average="exponential", average_every=2)
    primary, twin = bench.pair(averaging=averaging)
    primary.push(make_push(0))
    primary.push(make_push(1))
    other = bench.start(3, averaging=averaging)
    other.load(torch.ones(4))
    other.feed_twin("2")
    assert held(twin) == held(other)
    other.push(make_push(0, incarnation=3))
    other.push(make_push(1, incarnation=3))
    assert held(twin) == held(other)


def test_another_twin_takes_the_place_of_the_one_before(bench: Bench, make_push: MakePush) -> None:
    primary, twin = bench.pair()
    first = bench.wire
    third = bench.start(3, twin=True)
    primary.feed_twin("3")
    assert first.cut.is_set()
    primary.push(make_push(0))
    assert primary.state().twin == 3
    assert (twin.state().clock, third.state().clock) == (0, 1)


@pytest.mark.parametrize("end", ["release_twin", "abandon", "close"])
def test_a_twin_that_does_not_take_the_state_is_none(
    end: str, bench: Bench, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = bench.start(1)
    primary.load(torch.zeros(4))
    bench.start(2, twin=True)
    wire = Wire(bench._shards["2"])
    wire.silent = True
    monkeypatch.setattr(primary._mirror, "_connect", lambda address: wire)
    feeding = pool.submit(primary.feed_twin, "2")
    assert wire.reached.acquire(timeout=60)
    getattr(primary, end)()
    assert end_of(feeding) == "TransportError"
    if end == "release_twin":
        assert primary.state().twin == 0
        assert primary.failure is None


def test_a_twin_that_was_lost_is_none(bench: Bench, make_push: MakePush) -> None:
    primary = bench.start(1)
    primary.load(torch.zeros(4))
    bench.start(2, twin=True).close()
    with pytest.raises(TransportError, match="it does not run"):
        primary.feed_twin("2")
    assert primary.state().twin == 0
    assert primary.push(make_push(0)).status is PushStatus.APPLIED


def test_there_must_be_something_to_feed_and_a_way(bench: Bench, make_spec: MakeSpec) -> None:
    empty = bench.start(1)
    bench.start(2, twin=True)
    assert refusal(lambda: empty.feed_twin("2")) == Refusal.NOT_LOADED
    assert empty.state().twin == 0
    with Shard(make_spec(incarnation=3)) as alone:
        alone.load(torch.zeros(4))
        alone.release_twin()  # has none
        assert refusal(lambda: alone.feed_twin("2")) == "no_way"


# Death at a named point

PUSH_POINTS = (
    "before_apply",
    "before_mirror",
    "after_mirror_before_apply",
    "after_apply_before_log",
    "after_apply_before_answer",
)


@pytest.mark.parametrize("point", PUSH_POINTS)
def test_wherever_a_primary_dies_the_item_is_applied_once(
    point: str, bench: Bench, make_push: MakePush
) -> None:
    fault = Fault(point=point, who="shard 0", nth=2, action="die")
    primary, twin = bench.pair(faults=(fault,))
    primary.push(make_push(0))
    calls: list[Callable[[], object]] = [
        lambda: primary.push(make_push(1)),
        lambda: primary.push(make_push(1)),
        primary.state,
    ]
    for call in calls:
        with pytest.raises(ProcessLostError, match=point):
            call()
    there = point not in ("before_apply", "before_mirror")
    assert twin.promote().clock == (2 if there else 1)
    reply = twin.push(make_push(1, 50.0 if there else 1.0, incarnation=2))
    assert reply.status is (PushStatus.ALREADY_APPLIED if there else PushStatus.APPLIED)
    out = torch.empty(4)
    assert twin.fetch(out, begin=0) == Version(2, 2)
    assert out.tolist() == [-2.0] * 4


@pytest.mark.parametrize("point", PUSH_POINTS)
def test_who_waits_with_a_part_is_told(
    point: str, bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    primary, _ = bench.pair(faults=(Fault(point=point, who="shard 0", action="die"),))
    parts = [make_push(0, [1.0, 1.0], begin=begin) for begin in (0, 2)]
    calls = [pool.submit(primary.push, part) for part in parts]
    assert [end_of(call) for call in calls] == 2 * ["ProcessLostError"]


def test_a_twin_that_dies_is_waited_for(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    fault = Fault(point="before_apply", who="shard 0", action="die", start=2)
    primary, twin = bench.pair(faults=(fault,))
    bench.wire.reached = threading.Semaphore(0)
    waiting = pool.submit(primary.push, make_push(0))
    for _ in range(2):  # it is asked again
        assert bench.wire.reached.acquire(timeout=60)
    assert not waiting.done()
    assert twin.failure == "it died at before_apply"
    primary.release_twin()
    assert waiting.result(60).status is PushStatus.APPLIED


def test_death_before_a_save_leaves_no_file(bench: Bench) -> None:
    primary = bench.start(1, faults=(Fault(point="before_save", who="shard 0", action="die"),))
    primary.load(torch.zeros(4))
    with pytest.raises(ProcessLostError, match="before_save"):
        primary.save(0, (), 0.0)
    assert not primary.spec.storage.exists("snapshots")
    assert primary.failure == "it died at before_save"


def test_points_without_a_twin_are_those_of_an_apply(bench: Bench, make_push: MakePush) -> None:
    faults = tuple(Fault(point=p, who="shard 0", action="die") for p in PUSH_POINTS[1:3])
    shard = bench.start(1, faults=faults)
    shard.load(torch.zeros(4))
    assert shard.push(make_push(0)).status is PushStatus.APPLIED
