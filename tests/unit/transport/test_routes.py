"""The way to a shard that moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.server.shard import Shard
from distbelief.serving import NAME, Endpoint, Serving, write_serving
from distbelief.storage import LocalStorage
from distbelief.transport import routes as module
from distbelief.transport.client import ShardClient
from distbelief.transport.routes import LOOK_S, PAUSE_S, Client, FileDirectory, RoutedShard
from distbelief.transport.service import ShardServer
from distbelief.types import Push, PushReply, PushStatus, Refusal, Version

DEADLINE_S = 20.0
SIZE = 4
AWAY = TransportError(0, "UNAVAILABLE", "nobody there")
MakePush = Callable[..., Push]


def at(shard: int, incarnation: int, address: str = "") -> Endpoint:
    begin = SIZE * shard
    return Endpoint(shard, begin, begin + SIZE, incarnation, address or f"{shard}.{incarnation}")


def serving(*incarnations: int, number: int = 1, run: int = 1) -> Serving:
    shards = tuple(at(shard, incarnation) for shard, incarnation in enumerate(incarnations))
    return Serving(number=number, run=run, shards=shards)


def until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


@dataclass
class FakeShard:
    """One start of a shard: each call takes its next answer, which may be an error."""

    endpoint: Endpoint
    answers: list[PushReply | BaseException] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    closed: bool = False

    def _answer(self) -> Any:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def fetch(self, out: torch.Tensor, **options: Any) -> Version:
        self.calls.append("fetch")
        self._answer()
        out.fill_(float(self.endpoint.incarnation))
        return Version(self.endpoint.incarnation, 0)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        self.pushes.append(push)
        return cast(PushReply, self._answer()) or reply(self.endpoint.incarnation)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            self._answer()
            return name, arguments

        return call

    def close(self) -> None:
        self.closed = True


def reply(incarnation: int, refusal: Refusal | None = None) -> PushReply:
    status = PushStatus.APPLIED if refusal is None else PushStatus.REFUSED
    return PushReply(status=status, version=Version(incarnation, 1), refusal=refusal, detail="why")


@dataclass
class Way:
    """A directory, and the starts of shards that it has connected to."""

    directory: FileDirectory
    storage: LocalStorage
    clock: SimpleNamespace
    shards: dict[tuple[int, int], FakeShard]

    def move(self, *incarnations: int, number: int = 2, run: int = 1) -> None:
        """The file names these starts of the shards, and may be looked at again."""
        write_serving(self.storage, serving(*incarnations, number=number, run=run))
        self.clock.now += LOOK_S

    def incarnations(self) -> list[int]:
        return [e.incarnation for e in self.directory.serving.shards]


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """Two shards, of the starts 1 and 5; time passes by pauses alone."""
    clock = SimpleNamespace(now=100.0, pauses=[])

    def sleep(seconds: float) -> None:
        clock.pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    storage, shards = LocalStorage(tmp_path), dict[tuple[int, int], FakeShard]()

    def connect(endpoint: Endpoint) -> Client:
        key = endpoint.shard, endpoint.incarnation
        assert key not in shards, "one client for each start"
        shards[key] = FakeShard(endpoint)
        return cast(Client, shards[key])

    first = serving(1, 5)
    write_serving(storage, first)
    with FileDirectory(storage, first, connect) as directory:
        yield Way(directory, storage, clock, shards)


def fetched(shard: RoutedShard) -> float:
    out = torch.zeros(1)
    shard.fetch(out, begin=0)
    return out.item()


# The directory


def test_a_client_for_each_start_made_when_it_is_wanted(way: Way) -> None:
    assert way.shards == {}
    found = way.directory.find(1)
    assert (found.service, found.incarnation) == (way.shards[1, 5], 5)
    assert way.directory.find(1).service is found.service
    assert list(way.shards) == [(1, 5)]


@pytest.mark.parametrize(
    ("number", "run", "taken"),
    [(0, 1, False), (1, 1, False), (2, 1, True), (9, 0, False), (1, 2, True), (0, 2, True)],
)
def test_only_what_is_newer_is_taken(number: int, run: int, taken: bool, way: Way) -> None:
    """A storage may show an older file for a moment."""
    way.move(2, 6, number=number, run=run)
    way.directory.look()
    assert way.incarnations() == ([2, 6] if taken else [1, 5])


def test_clients_of_those_that_serve_no_more_are_closed(way: Way) -> None:
    way.directory.find(0)
    way.directory.find(1)
    way.move(1, 6)
    way.directory.look()
    assert (way.shards[0, 1].closed, way.shards[1, 5].closed) == (False, True)
    assert way.directory.find(1).service is way.shards[1, 6]


def test_the_file_is_not_read_more_often_than_need_be(way: Way) -> None:
    way.clock.now += LOOK_S
    way.directory.look()
    write_serving(way.storage, serving(2, 6, number=2))
    way.clock.now += 0.9 * LOOK_S
    way.directory.look()
    assert way.incarnations() == [1, 5]
    way.clock.now += 0.2 * LOOK_S
    way.directory.look()
    assert way.incarnations() == [2, 6]


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_file_that_cannot_be_read_changes_nothing(content: bytes | None, way: Way) -> None:
    if content is None:
        way.storage.remove(NAME)
    else:
        way.storage.write(NAME, content)
    way.clock.now += LOOK_S
    way.directory.look()
    assert way.incarnations() == [1, 5]
    way.move(2, 6)
    way.directory.look()
    assert way.incarnations() == [2, 6]


def test_at_its_end_nobody_is_found_any_more(way: Way) -> None:
    way.directory.find(0)
    way.directory.__exit__(None, None, None)
    assert way.shards[0, 1].closed
    with pytest.raises(TransportError) as caught:
        way.directory.find(0)
    assert (caught.value.shard, caught.value.code) == (0, "CLOSED")
    with pytest.raises(TransportError):
        RoutedShard(1, way.directory).state()
    assert list(way.shards) == [(0, 1)]


# Calls


def test_a_push_is_stamped_with_the_start_that_it_goes_to(way: Way, make_push: MakePush) -> None:
    shard = RoutedShard(1, way.directory)
    push = make_push(3, incarnation=99)
    assert shard.push(push).version == Version(5, 1)
    assert way.shards[1, 5].pushes == [replace(push, incarnation=5)]
    assert shard.incarnation == 5
    way.move(1, 6)
    way.directory.look()
    assert shard.push(push).version == Version(6, 1)
    assert way.shards[1, 6].pushes == [replace(push, incarnation=6)]


def test_the_call_that_fails_says_so_and_the_next_finds_the_new_place(way: Way) -> None:
    shard = RoutedShard(0, way.directory)
    assert fetched(shard) == 1.0
    way.shards[0, 1].answers = [AWAY]
    way.move(2, 5)
    with pytest.raises(TransportError) as caught:
        fetched(shard)
    assert caught.value is AWAY
    assert fetched(shard) == 2.0


def test_as_long_as_it_is_away_the_old_place_is_tried(way: Way) -> None:
    shard = RoutedShard(0, way.directory)
    way.directory.find(0)
    way.shards[0, 1].answers = [AWAY, AWAY]
    for _ in range(2):
        with pytest.raises(TransportError):
            fetched(shard)
    assert fetched(shard) == 1.0


def test_who_says_that_it_is_another_start_has_moved(way: Way, make_push: MakePush) -> None:
    shard = RoutedShard(0, way.directory)
    way.directory.find(0)
    way.shards[0, 1].answers = [reply(1, Refusal.INCARNATION)]
    way.move(2, 5)
    with pytest.raises(TransportError) as caught:
        shard.push(make_push(3))
    assert (caught.value.shard, caught.value.code, caught.value.detail) == (0, "MOVED", "why")
    assert shard.push(make_push(3)).version == Version(2, 1)


@pytest.mark.parametrize("refusal", sorted(set(Refusal) - {Refusal.INCARNATION}))
def test_other_refusals_are_answers(refusal: Refusal, way: Way, make_push: MakePush) -> None:
    way.directory.find(0)
    way.shards[0, 1].answers = [reply(1, refusal)]
    assert RoutedShard(0, way.directory).push(make_push(3)).refusal is refusal


def test_a_shard_in_this_process_that_has_died_is_away(way: Way) -> None:
    shard = RoutedShard(0, way.directory)
    way.directory.find(0)
    lost = ProcessLostError("shard 0", "killed")
    way.shards[0, 1].answers = [lost]
    way.move(2, 5)
    with pytest.raises(TransportError) as caught:
        shard.state()
    assert (caught.value.code, caught.value.detail) == ("UNAVAILABLE", str(lost))
    assert caught.value.__cause__ is lost
    assert fetched(shard) == 2.0


def test_what_another_try_cannot_change_is_raised_as_it_is(way: Way) -> None:
    refused = ShardRefusedError(0, "layout", "another")
    way.directory.find(0)
    way.shards[0, 1].answers = [refused]
    with pytest.raises(ShardRefusedError) as caught:
        RoutedShard(0, way.directory, patience_s=60.0).fetch(torch.zeros(1), begin=0)
    assert caught.value is refused
    assert way.clock.pauses == []


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda shard: shard.state(), ("state", ())),
        (lambda shard: shard.pause(3.0), ("pause", (3.0,))),
        (lambda shard: shard.save(4, ((0, 2),), 5.0), ("save", (4, ((0, 2),), 5.0))),
        (lambda shard: shard.feed_twin("h:1"), ("feed_twin", ("h:1",))),
        (lambda shard: shard.promote(), ("promote", ())),
        (lambda shard: shard.set_aside((1,), "why"), None),
        (lambda shard: shard.release_twin(), None),
        (lambda shard: shard.load(torch.zeros(1)), None),
    ],
    ids=["state", "pause", "save", "feed_twin", "promote", "set_aside", "release_twin", "load"],
)
def test_every_call_goes_to_the_start_that_serves(
    call: Callable[[RoutedShard], Any],
    expected: Any,
    way: Way,
    request: pytest.FixtureRequest,
) -> None:
    shard = RoutedShard(1, way.directory)
    assert call(shard) == expected
    assert way.shards[1, 5].calls == [request.node.callspec.id]
    way.shards[1, 5].answers = [AWAY]
    way.move(1, 6)
    with pytest.raises(TransportError):
        call(shard)
    call(shard)
    assert way.shards[1, 6].calls == [request.node.callspec.id]


# Patience


def test_a_patient_fetch_waits_for_the_new_place(way: Way) -> None:
    way.directory.find(0)
    way.shards[0, 1].answers = [AWAY]
    way.move(2, 5)
    assert fetched(RoutedShard(0, way.directory, patience_s=1.0)) == 2.0
    assert way.clock.pauses == [PAUSE_S]


def test_patience_ends(way: Way) -> None:
    way.directory.find(0)
    n = 3
    way.shards[0, 1].answers = [AWAY] * 9
    with pytest.raises(TransportError):
        fetched(RoutedShard(0, way.directory, patience_s=(n + 0.5) * PAUSE_S))
    assert way.clock.pauses == n * [PAUSE_S]
    assert way.shards[0, 1].calls == (n + 1) * ["fetch"]


def test_other_calls_have_no_patience_of_their_own(way: Way) -> None:
    way.directory.find(0)
    way.shards[0, 1].answers = [AWAY]
    with pytest.raises(TransportError):
        RoutedShard(0, way.directory, patience_s=60.0).state()
    assert way.clock.pauses == []


# A process that hangs


class Hung:
    """A shard that takes calls, and answers none until the end of the test."""

    def __init__(self) -> None:
        self.called, self.gate = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.called.set()
            assert self.gate.wait(DEADLINE_S)
            raise ProcessLostError("shard 0", "it hung")

        return call


CALLS: dict[str, Callable[[RoutedShard, MakePush], Any]] = {
    "fetch": lambda shard, make_push: shard.fetch(torch.zeros(SIZE), begin=0),
    "push": lambda shard, make_push: shard.push(make_push(0)),
    "state": lambda shard, make_push: shard.state(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_to_a_hung_process_ends_when_another_serves(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_shard: Callable[..., Shard],
    make_push: MakePush,
) -> None:
    """Long before its deadline."""
    monkeypatch.setattr(module, "LONG_CALL_S", 0.01)
    monkeypatch.setattr(module, "WATCH_S", 0.01)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr("distbelief.transport.service.STOP_GRACE_S", 0.0)
    storage, hung = LocalStorage(tmp_path), Hung()
    with ExitStack() as stack:

        def served(shard: Any) -> str:
            server = ShardServer(shard, size=SIZE, token="secret", n_clients=1)
            return stack.enter_context(server).endpoint

        old, new = served(hung), served(start_shard(SIZE, incarnation=2))
        stack.callback(hung.gate.set)
        first = Serving(number=1, run=1, shards=(at(0, 1, old),))
        write_serving(storage, first)
        directory = stack.enter_context(
            FileDirectory(
                storage, first, lambda e: ShardClient(0, e.address, "secret", timeout_s=600.0)
            )
        )
        shard = RoutedShard(0, directory)
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(CALLS[name], shard, make_push)
            assert hung.called.wait(DEADLINE_S)
            write_serving(storage, first.changed(shards=(at(0, 2, new),)))
            error = calling.exception(DEADLINE_S)
        assert isinstance(error, TransportError)
        # The same call again is answered.
        CALLS[name](shard, make_push)
        assert shard.state().incarnation == 2


def test_a_call_to_a_hung_process_ends_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distbelief.transport.service.STOP_GRACE_S", 0.0)
    hung = Hung()
    with (
        ShardServer(cast(Any, hung), size=SIZE, token="secret", n_clients=1) as server,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as stack,
    ):
        stack.callback(hung.gate.set)
        first = Serving(number=1, run=1, shards=(at(0, 1, server.endpoint),))
        with FileDirectory(
            LocalStorage(tmp_path),
            first,
            lambda e: ShardClient(0, e.address, "secret", timeout_s=600.0),
        ) as directory:
            calling = pool.submit(RoutedShard(0, directory).state)
            assert hung.called.wait(DEADLINE_S)
        assert isinstance(calling.exception(DEADLINE_S), TransportError)
        assert "directory" not in {thread.name for thread in threading.enumerate()}


def test_calls_that_are_short_have_nobody_look(way: Way) -> None:
    """The file is read when something has gone wrong, or lasts."""
    shard = RoutedShard(0, way.directory)
    way.move(2, 5)
    for _ in range(5):
        assert fetched(shard) == 1.0
    assert way.incarnations() == [1, 5]
