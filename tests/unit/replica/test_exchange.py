"""The exchange with the shards, against services that do as they are told."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.errors import (
    ProcessLostError,
    ShardRefusedError,
    TransportError,
    UnexpectedError,
)
from distbelief.replica import exchange as module
from distbelief.replica.exchange import Exchange, Exchanged, Gradient, ShardPort, ports_of
from distbelief.types import (
    LeasedItem,
    Push,
    PushReply,
    PushStatus,
    Refusal,
    Version,
    Weights,
)

ITEM = LeasedItem(number=7, lease=70, epoch=1, begin=10, end=20, rate=0.25)
AWAY = TransportError(0, "UNAVAILABLE", "away")


@dataclass
class Service:
    """Fetches give ``clock`` everywhere; answers that are given beforehand come first.

    An answer may be an error, a reply, or a function to be called.
    """

    clock: int
    answers: list[Any] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    outs: list[torch.Tensor | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def _answer(self) -> PushReply | None:
        answer = self.answers.pop(0) if self.answers else None
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        assert answer is None or isinstance(answer, PushReply)
        return answer

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        assert (weights, unless) == (Weights.LATEST, None)
        self.calls.append(f"fetch at {begin}")
        self._answer()
        out.fill_(self.clock)
        self.outs.append(out)
        return Version(1, self.clock)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        self.calls.append("push" if fetch_into is None else "push and fetch")
        self.pushes.append(push)
        self.outs.append(fetch_into)
        if (answer := self._answer()) is not None:
            return answer
        if fetch_into is not None:
            fetch_into.fill_(self.clock)
        version = Version(1, self.clock)
        fetched = None if fetch_into is None else version
        return PushReply(status=PushStatus.APPLIED, version=version, fetched=fetched)


def refused(reason: Refusal) -> PushReply:
    return PushReply(status=PushStatus.REFUSED, version=Version(1, 3), refusal=reason, detail="why")


def gradient(size: int = 5, n_shards: int = 2) -> Gradient:
    values = torch.arange(size, dtype=torch.float32)
    base = tuple(Version(10 + i, 100 + i) for i in range(n_shards))
    return Gradient(ITEM, values, base, 8, (11, 12))


MakeExchange = Callable[..., Exchange]


@pytest.fixture
def make_exchange() -> Iterator[MakeExchange]:
    """An exchange with shards of [0, 2), [2, 5), [5, 8), as many as there are services."""
    made: list[Exchange] = []

    def make(*services: Service, patience_s: float = 60.0) -> Exchange:
        bounds = [0, 2, 5, 8]
        ports = [
            ShardPort(service, i, bounds[i], bounds[i + 1], incarnation=20 + i)
            for i, service in enumerate(services)
        ]
        made.append(Exchange(ports, layout="layout", replica=3, patience_s=patience_s))
        return made[-1].__enter__()

    yield make
    for each in made:
        each.__exit__(None, None, None)


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, pause_s: float) -> bool:
        self.pauses.append(pause_s)
        self.now += pause_s
        return False

    def set(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Takes the place of time for the exchanges that are made from here on."""
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=lambda: found))
    return found


# What is sent, and what comes back


def test_each_shard_gets_its_part_with_its_own_base(make_exchange: MakeExchange) -> None:
    services = Service(1), Service(2)
    sent = gradient()
    result = make_exchange(*services).start(sent, None).result()
    assert result == Exchanged("", None)
    for i, (service, begin, end) in enumerate(zip(services, (0, 2), (2, 5), strict=True)):
        (push,) = service.pushes
        assert service.calls == ["push"]
        assert (push.item, push.lease, push.rate, push.examples) == (7, 70, 0.25, 8)
        assert (push.replica, push.layout, push.skipped) == (3, "layout", (11, 12))
        assert (push.begin, push.incarnation) == (begin, 20 + i)
        assert push.base == Version(10 + i, 100 + i)
        assert push.gradient.tolist() == [float(v) for v in range(begin, end)]
        assert push.gradient.data_ptr() == sent.values[begin:].data_ptr()  # no copy


def test_a_fetch_fills_the_vector_from_all_shards(make_exchange: MakeExchange) -> None:
    services = Service(1), Service(2), Service(3)
    out = torch.zeros(8)
    result = make_exchange(*services).start(None, out).result()
    assert result == Exchanged("", (Version(1, 1), Version(1, 2), Version(1, 3)))
    assert out.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    assert [s.calls for s in services] == [["fetch at 0"], ["fetch at 2"], ["fetch at 5"]]


def test_a_push_brings_the_fetch_along_in_one_round_trip(make_exchange: MakeExchange) -> None:
    services = Service(4), Service(5)
    out = torch.zeros(5)
    result = make_exchange(*services).start(gradient(), out).result()
    assert result == Exchanged("", (Version(1, 4), Version(1, 5)))
    assert out.tolist() == [4.0, 4.0, 5.0, 5.0, 5.0]
    assert [s.calls for s in services] == 2 * [["push and fetch"]]
    assert services[1].outs[0] is not None
    assert services[1].outs[0].data_ptr() == out[2:].data_ptr()


def test_shards_are_reached_at_once(make_exchange: MakeExchange) -> None:
    together = threading.Barrier(3)

    def meet() -> None:
        together.wait(60)

    services = [Service(i, [meet]) for i in range(3)]
    result = make_exchange(*services).start(gradient(8, 3), None).result()
    assert result == Exchanged("", None)


def test_done_tells_whether_all_have_answered(make_exchange: MakeExchange) -> None:
    released = threading.Event()

    def wait() -> None:
        assert released.wait(60)

    pending = make_exchange(Service(0), Service(1, [wait])).start(gradient(), None)
    assert not pending.done()
    released.set()
    pending.result()
    assert pending.done()


# Answers that do not come


def test_a_call_that_gets_no_answer_is_made_again_the_same(
    make_exchange: MakeExchange, clock: Clock
) -> None:
    service = Service(3, [AWAY, AWAY, TransportError(0, "BUSY", "no room"), None])
    out = torch.zeros(2)
    result = make_exchange(service).start(gradient(2, 1), out).result()
    assert result == Exchanged("", (Version(1, 3),))
    assert len(service.pushes) == 4
    first, *others = service.pushes
    for push in others:
        assert all(
            getattr(push, name) == getattr(first, name)
            for name in ("item", "lease", "base", "rate", "begin", "incarnation")
        )
        assert push.gradient.data_ptr() == first.gradient.data_ptr()
    assert clock.pauses == [0.05, 0.1, 0.2]


@pytest.mark.parametrize(
    ("patience_s", "pauses"),
    [
        (0.01, []),
        (0.06, [0.05]),
        (1.0, [0.05, 0.1, 0.2, 0.4]),
        (10.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]),
    ],
)
@pytest.mark.parametrize("push", [True, False])
def test_patience_ends(
    push: bool, patience_s: float, pauses: list[float], make_exchange: MakeExchange, clock: Clock
) -> None:
    service = Service(0, 100 * [AWAY])
    exchange = make_exchange(service, patience_s=patience_s)
    pending = exchange.start(gradient(2, 1) if push else None, torch.zeros(2))
    with pytest.raises(TransportError) as caught:
        pending.result()
    assert caught.value is AWAY
    assert clock.pauses == pytest.approx(pauses)
    assert len(service.calls) == len(pauses) + 1


def test_a_shard_that_is_away_does_not_keep_the_others_waiting(
    make_exchange: MakeExchange, clock: Clock
) -> None:
    services = Service(1, 100 * [AWAY]), Service(2)
    with pytest.raises(TransportError):
        make_exchange(*services, patience_s=1.0).start(gradient(), torch.zeros(5)).result()
    assert services[1].calls == ["push and fetch"]


def test_the_end_of_the_exchange_ends_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1000.0)
    called = threading.Event()

    def away() -> TransportError:
        called.set()
        return AWAY

    port = ShardPort(Service(0, [away]), 0, 0, 2, incarnation=1)
    with Exchange([port], layout="layout", replica=0, patience_s=1e6) as exchange:
        pending = exchange.start(gradient(2, 1), None)
        assert called.wait(60)
    with pytest.raises(TransportError):
        pending.result()


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (ShardRefusedError(0, "not_loaded", "empty"), ShardRefusedError, "empty"),
        (ProcessLostError("shard 0", "no space"), ProcessLostError, "no space"),
        (ValueError("a bug"), UnexpectedError, r"^ValueError: a bug \(.*, in _answer\)$"),
    ],
)
def test_other_errors_are_raised_at_once(
    error: Exception, expected: type[Exception], text: str, make_exchange: MakeExchange
) -> None:
    services = Service(0, [error]), Service(1)
    pending = make_exchange(*services).start(gradient(), torch.zeros(5))
    with pytest.raises(expected, match=text) as caught:
        pending.result()
    assert type(caught.value) is expected
    assert len(services[0].calls) == 1


# Refusals

PASSING = [r for r in Refusal if r not in module.FATAL]


def test_which_refusals_end_a_replica() -> None:
    assert set(module.FATAL) == {Refusal.LAYOUT, Refusal.SIZE, Refusal.RATE}


@pytest.mark.parametrize("reason", PASSING)
def test_a_refusal_of_one_shard_is_the_items(reason: Refusal, make_exchange: MakeExchange) -> None:
    services = Service(1), Service(2, [refused(reason)])
    result = make_exchange(*services).start(gradient(), None).result()
    assert result == Exchanged(reason, None)
    assert services[1].calls == ["push"]


def test_of_two_refusals_the_first_shards_counts(make_exchange: MakeExchange) -> None:
    services = [
        Service(0),
        Service(1, [refused(Refusal.STALE)]),
        Service(2, [refused(Refusal.NORM)]),
    ]
    assert make_exchange(*services).start(gradient(8, 3), None).result().refusal == "stale"


def test_after_a_refusal_the_fetch_is_made_by_itself(make_exchange: MakeExchange) -> None:
    services = Service(4), Service(5, [refused(Refusal.STALE), AWAY])
    out = torch.zeros(5)
    result = make_exchange(*services).start(gradient(), out).result()
    assert result == Exchanged("stale", (Version(1, 4), Version(1, 5)))
    assert out.tolist() == [4.0, 4.0, 5.0, 5.0, 5.0]
    assert services[0].calls == ["push and fetch"]
    assert services[1].calls == ["push and fetch", "fetch at 2", "fetch at 2"]  # patiently


@pytest.mark.parametrize("reason", sorted(module.FATAL))
def test_a_fatal_refusal_is_raised(reason: Refusal, make_exchange: MakeExchange) -> None:
    services = Service(0), Service(1, [refused(reason)])
    pending = make_exchange(*services).start(gradient(), torch.zeros(5))
    with pytest.raises(ShardRefusedError) as caught:
        pending.result()
    assert vars(caught.value) == {"shard": 1, "reason": reason, "detail": "why"}
    assert services[1].calls == ["push and fetch"]


@pytest.mark.parametrize("status", [PushStatus.ALREADY_APPLIED, PushStatus.SET_ASIDE])
def test_an_item_that_is_done_already_is_no_refusal(
    status: PushStatus, make_exchange: MakeExchange
) -> None:
    reply = PushReply(status=status, version=Version(1, 9), fetched=Version(1, 9))
    service = Service(0, [reply])
    result = make_exchange(service).start(gradient(2, 1), torch.zeros(2)).result()
    assert result == Exchanged("", (Version(1, 9),))
    assert service.calls == ["push and fetch"]


# Threads


def test_its_threads_are_named_and_end_with_it() -> None:
    names: list[str] = []

    def note() -> None:
        names.append(threading.current_thread().name)

    ports = [ShardPort(Service(0, [note]), i, i, i + 1, incarnation=1) for i in range(2)]
    with Exchange(ports, layout="layout", replica=12, patience_s=1.0) as exchange:
        exchange.start(gradient(2), None).result()
    assert sorted(name.rpartition("_")[0] for name in names) == 2 * ["replica-12-exchange"]
    assert not [t for t in threading.enumerate() if t.name in names]


def test_results_may_be_taken_by_another_thread(make_exchange: MakeExchange) -> None:
    pending = make_exchange(Service(6)).start(None, torch.zeros(2))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pending.result).result(60).versions == (Version(1, 6),)


# A stage's ports


def shards(*bounds: int) -> list[ShardPort]:
    return [
        ShardPort(Service(i), i, begin, end, incarnation=20 + i)
        for i, (begin, end) in enumerate(pairwise(bounds))
    ]


def test_a_port_lies_where_it_does_in_the_flat_vector_unless_told() -> None:
    assert ShardPort(Service(0), 0, 3, 7, incarnation=1).local == slice(3, 7)
    assert ShardPort(Service(0), 0, 3, 7, incarnation=1, at=0).local == slice(0, 4)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0, 30)], [(0, 0, 10, 0), (1, 10, 20, 10), (2, 20, 30, 20)]),
        ([(4, 8)], [(0, 4, 8, 0)]),
        ([(0, 10)], [(0, 0, 10, 0)]),
        ([(8, 22)], [(0, 8, 10, 0), (1, 10, 20, 2), (2, 20, 22, 12)]),
        (
            [(2, 5), (9, 12), (25, 30)],
            [(0, 2, 5, 0), (0, 9, 10, 3), (1, 10, 12, 4), (2, 25, 30, 6)],
        ),
        ([(2, 5), (6, 8)], [(0, 2, 5, 0), (0, 6, 8, 3)]),  # two ranges of one shard
    ],
)
def test_a_stage_has_a_port_for_each_range_of_each_shard_that_it_overlaps(
    ranges: list[tuple[int, int]], expected: list[tuple[int, int, int, int]]
) -> None:
    ports = shards(0, 10, 20, 30)
    found = ports_of(ports, ranges)
    assert [(p.shard, p.begin, p.end, p.at) for p in found] == expected
    for port in found:
        assert port.service is ports[port.shard].service
        assert port.incarnation == 20 + port.shard


@settings(deadline=None)
@given(st.sets(st.integers(1, 59), max_size=6), st.sets(st.integers(0, 60), max_size=10))
def test_a_stages_ports_tile_its_vector(cuts: set[int], edges: set[int]) -> None:
    ports = shards(0, *sorted(cuts), 60)
    at = sorted(edges)
    ranges = list(zip(at[::2], at[1::2], strict=False))
    found = ports_of(ports, ranges)
    whole = list(range(60))
    own = [i for begin, end in ranges for i in whole[begin:end]]
    assert [i for port in found for i in whole[port.begin : port.end]] == own
    assert [i for port in found for i in own[port.local]] == own
    for port in found:
        of_shard = ports[port.shard]
        assert of_shard.begin <= port.begin < port.end <= of_shard.end


def test_a_stage_pushes_and_fetches_its_own_ranges() -> None:
    """Its vectors are joined; what it sends tells where that lies in the whole."""
    ports = shards(0, 4, 8)
    own = ports_of(ports, [(1, 3), (6, 8)])
    values, out = torch.tensor([1.0, 2.0, 6.0, 7.0]), torch.zeros(4)
    sent = Gradient(ITEM, values, (Version(10, 100), Version(11, 101)), 8, ())
    with Exchange(own, layout="layout", replica=3, patience_s=60.0) as exchange:
        result = exchange.start(sent, None).result()
        assert result == Exchanged("", None)
        for port, begin, part in zip(ports, (1, 6), ([1.0, 2.0], [6.0, 7.0]), strict=True):
            (push,) = port.service.pushes  # type: ignore[attr-defined]
            assert (push.begin, push.gradient.tolist()) == (begin, part)
            assert push.base == sent.base[port.shard]
        assert exchange.start(None, out).result().versions == (Version(1, 0), Version(1, 1))
    assert [p.service.calls[-1] for p in ports] == [  # type: ignore[attr-defined]
        "fetch at 1",
        "fetch at 6",
    ]
    assert out.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_two_ranges_of_one_shard_go_by_themselves(make_exchange: MakeExchange) -> None:
    service = Service(5)
    own = ports_of([ShardPort(service, 0, 0, 10, incarnation=1)], [(1, 3), (6, 8)])
    sent = Gradient(ITEM, torch.arange(4.0), 2 * (Version(1, 9),), 8, ())
    with Exchange(own, layout="layout", replica=3, patience_s=60.0) as exchange:
        exchange.start(sent, None).result()
    assert sorted((p.begin, p.gradient.tolist()) for p in service.pushes) == [
        (1, [0.0, 1.0]),
        (6, [2.0, 3.0]),
    ]
