"""A shard behind its server and client, on loopback: the same as the shard itself, bit for bit."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.server.pause import Gate, Pause
from distbelief.server.pushlog import read_log
from distbelief.server.shard import Shard
from distbelief.server.statefile import read
from distbelief.services import ShardService
from distbelief.storage import LocalStorage
from distbelief.transport import client as client_module
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.client import SAVE_S, ShardClient
from distbelief.transport.codec import CHUNK_NBYTES, Chunk, chunks, encode
from distbelief.transport.guard import authorization
from distbelief.transport.service import SERVICE, ShardServer
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

TOKEN = "the run's token"
StartShard = Callable[..., Shard]
MakePush = Callable[..., Push]
Serve = Callable[..., ShardClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a shard and returns a client of it; all end with the test."""
    with ExitStack() as stack:

        def start(
            shard: ShardService,
            *,
            size: int = 4,
            token: str = TOKEN,
            index: int = 0,
            timeout_s: float = 30.0,
        ) -> ShardClient:
            server = stack.enter_context(ShardServer(shard, size=size, token=TOKEN, n_clients=2))
            return stack.enter_context(
                ShardClient(index, server.endpoint, token, timeout_s=timeout_s)
            )

        yield start


@dataclass
class FakeShard:
    """Answers what it is told to, and keeps what it was asked."""

    reply: PushReply | None = None
    error: Exception | None = None
    blocks: threading.Event | None = None
    begin: int = 0
    pushes: list[Push] = field(default_factory=list)

    def _answer(self) -> None:
        if self.blocks is not None:
            assert self.blocks.wait(60)
        if self.error is not None:
            raise self.error

    def fetch(self, out: torch.Tensor, **arguments: Any) -> Version:
        self._answer()
        out.fill_(1.0)
        return Version(1, 1)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        self._answer()
        self.pushes.append(replace(push, gradient=push.gradient.clone()))
        assert self.reply is not None
        return self.reply

    def load(self, values: torch.Tensor) -> None:
        self._answer()

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        self._answer()

    def state(self) -> ShardState:
        self._answer()
        return ShardState(
            shard=0,
            incarnation=1,
            begin=self.begin,
            end=self.begin + 4,
            loaded=True,
            clock=0,
            examples=0,
            skipped=0,
            applied=(),
            set_aside={},
            repeated=0,
        )

    def pause(self, seconds: float) -> ShardState:
        return self.state()

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        return ShardFile(name="a", nbytes=1, sha256="", n_shards=1, state=self.state())


CALLS: dict[str, Callable[[ShardClient, Push], object]] = {
    "fetch": lambda client, push: client.fetch(torch.empty(4), begin=0),
    "push": lambda client, push: client.push(push),
    "load": lambda client, push: client.load(torch.zeros(4)),
    "set_aside": lambda client, push: client.set_aside((1,), "why"),
    "state": lambda client, push: client.state(),
    "pause": lambda client, push: client.pause(0.01),
    "save": lambda client, push: client.save(0, (), 0.0),
    "healthy": lambda client, push: client.healthy(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# The same as direct calls


def test_everything_equals_direct_calls_bit_for_bit(
    start_shard: StartShard, make_push: MakePush, serve: Serve, tmp_path: Path
) -> None:
    begin, size = 10, CHUNK_NBYTES // 4 + 1000  # more than one chunk
    common: dict[str, Any] = {
        "begin": begin,
        "load": False,
        "incarnation": 2,
        "optimizer": OptimizerConfig(kernel="unfused", max_staleness=2),
        "averaging": AveragingConfig(average="exponential", average_every=1),
    }
    direct = start_shard(size, storage=LocalStorage(tmp_path / "direct"), **common)
    served = start_shard(size, storage=LocalStorage(tmp_path / "served"), **common)
    client = serve(served, size=size)
    sides: list[ShardService] = [direct, client]
    outs = [torch.full((size,), 7.0) for _ in sides]

    def same_vectors() -> None:
        assert torch.equal(outs[0].view(torch.int32), outs[1].view(torch.int32))

    def both(call: Callable[[ShardService, torch.Tensor], Any]) -> Any:
        first, second = [call(side, out) for side, out in zip(sides, outs, strict=True)]
        assert first == second
        same_vectors()
        return first

    assert [client.healthy(), direct.state().loaded] == [False, False]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, generator=generator)
    both(lambda side, out: side.load(values))
    assert client.healthy()
    assert both(lambda side, out: side.fetch(out, begin=begin)) == Version(2, 0)
    assert torch.equal(outs[1], values)

    def push(item: int, fetch: bool, **changes: Any) -> PushReply:
        gradient = torch.randn(size, generator=generator)
        fields = {"begin": begin, "incarnation": 2, "base": Version(2, 0), "rate": 0.1 + 0.2}
        made = make_push(item, gradient, **{**fields, **changes})
        reply: PushReply = both(
            lambda side, out: side.push(
                replace(made, gradient=gradient.clone()), fetch_into=out if fetch else None
            )
        )
        return reply

    assert push(3, fetch=False).status is PushStatus.APPLIED
    assert push(4, fetch=True, skipped=(5, 2**40), examples=8).fetched == Version(2, 2)
    assert push(3, fetch=True).status is PushStatus.ALREADY_APPLIED
    assert push(5, fetch=True, base=Version(1, 99)).staleness is None
    assert push(6, fetch=True).refusal is Refusal.STALE
    assert push(6, fetch=True, rate=float("nan")).refusal is Refusal.RATE
    assert push(6, fetch=True, layout="other").refusal is Refusal.LAYOUT
    both(lambda side, out: side.set_aside((6, 2**40), "norm, 3 times"))
    assert push(6, fetch=True).status is PushStatus.SET_ASIDE
    both(lambda side, out: side.fetch(out, begin=begin))
    both(lambda side, out: side.fetch(out, begin=begin, weights=Weights.AVERAGED))
    for out in outs:
        out.fill_(7.0)
    both(lambda side, out: side.fetch(out, begin=begin, unless=Version(2, 3)))
    assert torch.equal(outs[1], torch.full((size,), 7.0))
    both(lambda side, out: side.fetch(out[:100], begin=begin + size - 100))
    state = both(lambda side, out: side.state())
    assert (state.clock, state.repeated, state.refused) == (
        3,
        1,
        {"stale": 1, "rate": 1, "layout": 1},
    )
    files = [side.save(7, ((3, 6),), 60.0) for side in sides]
    assert replace(files[0], paused_s=0.0) == replace(files[1], paused_s=0.0)
    assert (files[0].state.clock, files[0].n_shards) == (3, 1)
    contents = [s.spec.storage.read(f"snapshots/000007/{files[0].name}") for s in (direct, served)]
    assert contents[0] == contents[1]
    logs = [shard.spec.storage.logs("pushes") for shard in (direct, served)]
    assert logs[0] == logs[1] == ["shard-00000-of-00001.0002.jsonl"]
    texts = [s.spec.storage.read_log(f"pushes/{logs[0][0]}") for s in (direct, served)]
    assert texts[0] == texts[1]


def test_the_callers_gradient_is_left_alone(
    start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    client = serve(start_shard())
    push = make_push(0, [1, 2, 3, 4])
    client.push(push)
    assert push.gradient.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda side: side.load(torch.zeros(4)),
        lambda side: side.fetch(torch.empty(4), begin=1),
        lambda side: side.fetch(torch.empty(2), begin=3),
    ],
)
def test_refusals_are_the_direct_ones(
    call: Callable[[ShardService], object],
    start_shard: StartShard,
    make_push: MakePush,
    serve: Serve,
) -> None:
    shard = start_shard()
    client = serve(shard)
    client.push(make_push(0))
    errors = []
    for side in (shard, client):
        with pytest.raises(ShardRefusedError) as caught:
            call(side)
        errors.append(caught.value)
    assert vars(errors[0]) == vars(errors[1])


def test_a_shard_without_values_is_not_healthy_and_refuses(
    start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    client = serve(start_shard(load=False))
    assert not client.healthy()
    for name in ("fetch", "push"):
        with pytest.raises(ShardRefusedError, match="no initial values") as caught:
            CALLS[name](client, make_push(0))
        assert caught.value.reason == "not_loaded"


def test_threads_over_the_wire_apply_each_item_once(
    start_shard: StartShard,
    make_push: MakePush,
    serve: Serve,
    in_threads: Callable[..., list[Any]],
) -> None:
    shard = start_shard(n_ports=4)
    client = serve(shard)

    def replica(number: int) -> list[PushStatus]:
        return [client.push(make_push(i, replica=number)).status for i in range(20)]

    results = in_threads([lambda r=r: replica(r) for r in range(3)])
    statuses = [status for result in results for status in result]
    assert statuses.count(PushStatus.APPLIED) == 20
    assert statuses.count(PushStatus.ALREADY_APPLIED) == 40
    assert (client.state().clock, client.state().repeated) == (20, 40)


# What survives the wire


@pytest.mark.parametrize("refusal", Refusal)
def test_every_reason_survives_the_wire(
    refusal: Refusal, make_push: MakePush, serve: Serve
) -> None:
    reply = PushReply(
        status=PushStatus.REFUSED, version=Version(3, 5), refusal=refusal, detail="why: ∞\nso"
    )
    client = serve(FakeShard(reply=reply))
    out = torch.full((4,), 7.0)
    assert client.push(make_push(0), fetch_into=out) == reply
    assert out.tolist() == [7.0] * 4


def test_a_push_survives_the_wire(make_push: MakePush, serve: Serve) -> None:
    reply = PushReply(status=PushStatus.APPLIED, version=Version(1, 1))
    shard = FakeShard(reply=reply, begin=2**33)
    client = serve(shard)
    sent = make_push(
        2**50,
        [1, -0.0, 1e-45, 3.4e38],
        lease=2**40,
        replica=77,
        begin=2**33,
        incarnation=5,
        base=Version(4, 2**45),
        rate=0.1 + 0.2,
        examples=31,
        skipped=(0, 2**41),
        layout="ä",
    )
    client.push(sent)
    (got,) = shard.pushes
    assert got.gradient.numpy().tobytes() == sent.gradient.numpy().tobytes()
    same = torch.empty(0)
    assert replace(got, gradient=same) == replace(sent, gradient=same)


@pytest.mark.parametrize("reason", [*Refusal, "too_late"])
def test_a_refused_call_survives_the_wire(reason: str, serve: Serve) -> None:
    client = serve(FakeShard(error=ShardRefusedError(3, reason, "why: ∞\nso")), index=3)
    with pytest.raises(ShardRefusedError) as caught:
        client.load(torch.zeros(4))
    assert vars(caught.value) == {"shard": 3, "reason": reason, "detail": "why: ∞\nso"}


# The token


@every_call
@pytest.mark.parametrize("token", ["", "another", TOKEN + " "])
def test_a_wrong_token_is_refused_and_changes_nothing(
    call: Callable[[ShardClient, Push], object],
    token: str,
    start_shard: StartShard,
    make_push: MakePush,
    serve: Serve,
) -> None:
    shard = start_shard()
    shard.push(make_push(0))
    before = shard.state()
    client = serve(shard, token=token)
    with pytest.raises(ShardRefusedError, match="the run's token is missing or wrong") as caught:
        call(client, make_push(1))
    assert caught.value.reason == "unauthenticated"
    assert shard.state() == before


def test_a_call_without_any_token_is_refused(start_shard: StartShard, serve: Serve) -> None:
    client = serve(start_shard())
    with grpc.insecure_channel(client.endpoint) as channel:
        state = channel.unary_unary(f"/{SERVICE}/State", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            state(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        state(b"", timeout=30, metadata=authorization(TOKEN))


# Vectors that are not what they should be


@pytest.mark.parametrize("size", [5, 400_000])
def test_a_push_of_another_size_is_refused(
    size: int, start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    shard = start_shard(incarnation=2)
    client = serve(shard)
    client.push(make_push(0, incarnation=2))
    before = shard.state()
    out = torch.full((size,), 7.0)
    push = make_push(1, torch.ones(size), incarnation=2)
    reply = client.push(push, fetch_into=out)
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, Refusal.SIZE)
    assert (reply.version, reply.fetched) == (Version(2, 1), None)  # the shard's, not the push's
    assert "this shard has [0, 4)" in reply.detail
    assert shard.state() == replace(before, refused={"size": 1})
    assert torch.equal(out, torch.full((size,), 7.0))
    assert client.push(make_push(1, incarnation=2)).status is PushStatus.APPLIED


@pytest.mark.parametrize(
    ("begin", "n"),
    [(10, 5), (10, 0), (9, 4), (9, 1), (11, 4), (13, 2), (14, 1), (0, 4), (2**63, 1)],
)
def test_what_the_shard_does_not_hold_is_refused_before_its_payload_is_received(
    begin: int, n: int, start_shard: StartShard, serve: Serve
) -> None:
    shard = start_shard(begin=10)
    client = serve(shard)
    answered = threading.Event()

    def messages() -> Iterator[bytes]:
        yield header(n_elements=n, begin=begin)
        answered.wait(60)

    with grpc.insecure_channel(client.endpoint) as channel:
        push = channel.stream_stream(f"/{SERVICE}/Push", None, pb.VectorReply.FromString)
        replies = push(messages(), timeout=30, metadata=authorization(TOKEN))
        try:
            assert next(replies).pushed.refusal == "size"
            assert list(replies) == []
        finally:
            answered.set()
    assert shard.state().refused == {"size": 1}


@pytest.mark.parametrize("size", [3, 5])
def test_a_load_of_another_size_is_refused(
    size: int, start_shard: StartShard, serve: Serve
) -> None:
    shard = start_shard(load=False)
    with pytest.raises(ShardRefusedError, match=f"{size} elements for a shard of 4"):
        serve(shard).load(torch.zeros(size))
    assert not shard.state().loaded


def test_a_fetch_of_more_than_the_shard_has_is_refused(
    start_shard: StartShard, serve: Serve
) -> None:
    with pytest.raises(ShardRefusedError, match="5 elements of a shard of 4"):
        serve(start_shard()).fetch(torch.empty(5), begin=0)


def header(n_elements: int = 4, item: int = 9, begin: int = 0) -> bytes:
    made = pb.PushHeader(
        item=item,
        begin=begin,
        n_elements=n_elements,
        incarnation=1,
        layout="fingerprint",
        rate=1.0,
        examples=1,
    )
    made.base.incarnation = 1
    return pb.PushRequest(header=made).SerializeToString()


def chunk(offset: int, n: int) -> bytes:
    return encode(Chunk(offset, memoryview(torch.ones(n).numpy().tobytes())))


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "a push begins with its header"),
        ([b""], "a push begins with its header"),
        ([chunk(0, 4)], "a push begins with its header"),
        ([header()], "0 of 4 elements came"),
        ([header(), chunk(0, 3)], "3 of 4 elements came"),
        ([header(), chunk(0, 5)], "5 elements at 0, where 0 of 4 had come"),
        ([header(), chunk(0, 2), chunk(3, 1)], "1 elements at 3, where 2 of 4 had come"),
        ([header(), chunk(0, 2), chunk(0, 2)], "2 elements at 0, where 2 of 4 had come"),
        ([header(), chunk(1, 3)], "3 elements at 1, where 0 of 4 had come"),
        ([header(), chunk(0, 2), header()], "a chunk was expected"),
    ],
)
def test_a_malformed_push_is_refused_and_changes_nothing(
    messages: list[bytes],
    text: str,
    start_shard: StartShard,
    make_push: MakePush,
    serve: Serve,
) -> None:
    shard = start_shard()
    client = serve(shard)
    before = shard.state()
    with grpc.insecure_channel(client.endpoint) as channel:
        push = channel.stream_stream(f"/{SERVICE}/Push", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            list(push(iter(messages), timeout=30, metadata=authorization(TOKEN)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == text
    assert ("distbelief-reason", "malformed") in caught.value.trailing_metadata()
    assert shard.state() == before
    assert client.push(make_push(9)).status is PushStatus.APPLIED  # it serves on


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\x12\x05ab", b"\x12\x05\x12\x03abc", b"\x0a\x05"]
)
def test_garbage_ends_its_call_alone(
    garbage: bytes, start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    shard = start_shard()
    client = serve(shard)
    before = shard.state()
    with grpc.insecure_channel(client.endpoint) as channel:
        push = channel.stream_stream(f"/{SERVICE}/Push", None, None)
        with pytest.raises(grpc.RpcError):
            list(push(iter([header(), garbage]), timeout=30, metadata=authorization(TOKEN)))
    assert shard.state() == before
    assert client.push(make_push(9)).status is PushStatus.APPLIED


def test_a_push_in_uneven_chunks_is_taken(start_shard: StartShard, serve: Serve) -> None:
    shard = start_shard()
    client = serve(shard)
    messages = [header(), chunk(0, 1), chunk(1, 2), chunk(3, 1)]
    with grpc.insecure_channel(client.endpoint) as channel:
        push = channel.stream_stream(f"/{SERVICE}/Push", None, pb.VectorReply.FromString)
        (reply,) = push(iter(messages), timeout=30, metadata=authorization(TOKEN))
    assert reply.pushed.status == pb.PUSH_STATUS_APPLIED
    out = torch.empty(4)
    client.fetch(out, begin=0)
    assert out.tolist() == [-1.0] * 4


# Answers that are not what they should be


def answer_with(replies: list[bytes]) -> grpc.Server:
    """A server that answers every fetch and push with the same messages."""
    server = grpc.server(ThreadPoolExecutor(2))

    def answer(request: object, context: object) -> Iterator[bytes]:
        yield from replies

    def answer_stream(requests: Iterator[object], context: object) -> Iterator[bytes]:
        for _ in requests:
            pass
        yield from replies

    handlers = {
        "Fetch": grpc.unary_stream_rpc_method_handler(answer),
        "Push": grpc.stream_stream_rpc_method_handler(answer_stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    return server


def fetched(n: int) -> bytes:
    return pb.VectorReply(fetched=pb.FetchResult(n_elements=n)).SerializeToString()


def pushed(n: int, **changes: Any) -> bytes:
    result = pb.PushResult(**{"status": pb.PUSH_STATUS_APPLIED, "n_elements": n, **changes})
    return pb.VectorReply(pushed=result).SerializeToString()


@pytest.mark.parametrize(
    ("name", "replies", "text"),
    [
        ("fetch", [], "the answer does not begin with its result"),
        ("fetch", [pushed(0)], "the answer does not begin with its result"),
        ("fetch", [chunk(0, 4)], "the answer does not begin with its result"),
        ("fetch", [fetched(3), chunk(0, 3)], "3 elements that were not asked for"),
        ("fetch", [fetched(4)], "0 of 4 elements came"),
        ("fetch", [fetched(4), chunk(0, 3)], "3 of 4 elements came"),
        ("fetch", [fetched(4), chunk(1, 3)], "3 elements at 1"),
        ("fetch", [fetched(4), chunk(0, 5)], "5 elements at 0"),
        ("fetch", [fetched(4), chunk(0, 4), chunk(4, 1)], "more came than was announced"),
        ("fetch", [fetched(0), chunk(0, 4)], "more came than was announced"),
        ("push", [], "the answer does not begin with its result"),
        ("push", [fetched(0)], "the answer does not begin with its result"),
        ("push", [pushed(4), chunk(0, 4)], "4 elements that were not asked for"),
        ("push", [pushed(0), chunk(0, 4)], "more came than was announced"),
        ("push", [pushed(0, status=99)], "99 is none of"),
        ("push", [pushed(0, status=0)], "0 is none of"),
        ("push", [pushed(0, refusal="mood")], "'mood' is none of"),
    ],
)
def test_a_malformed_answer_is_an_answer_that_did_not_come(
    name: str, replies: list[bytes], text: str, make_push: MakePush
) -> None:
    server = answer_with(replies)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            ShardClient(2, f"127.0.0.1:{port}", TOKEN, timeout_s=30) as client,
            pytest.raises(TransportError, match=text) as caught,
        ):
            CALLS[name](client, make_push(0))
    finally:
        server.stop(0).wait()
    assert (caught.value.shard, caught.value.code) == (2, "MALFORMED")


# Ports, deadlines, deaths


def test_two_servers_cannot_share_a_port(start_shard: StartShard, serve: Serve) -> None:
    shard = start_shard()
    client = serve(shard)
    port = int(client.endpoint.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="bind"):
        ShardServer(shard, size=4, token=TOKEN, n_clients=1, port=port)
    assert client.healthy()


@every_call
def test_a_deadline_is_kept(
    call: Callable[[ShardClient, Push], object],
    make_push: MakePush,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "SAVE_S", 0.1)
    released = threading.Event()
    client = serve(FakeShard(blocks=released, error=RuntimeError("late")), timeout_s=0.1)
    try:
        with pytest.raises(TransportError) as caught:
            call(client, make_push(0))
    finally:
        released.set()
    assert (caught.value.shard, caught.value.code) == (0, "DEADLINE_EXCEEDED")
    assert client.endpoint in caught.value.detail


@every_call
def test_a_dead_server_does_not_answer(
    call: Callable[[ShardClient, Push], object], start_shard: StartShard, make_push: MakePush
) -> None:
    with ShardServer(start_shard(), size=4, token=TOKEN, n_clients=1) as server:
        endpoint = server.endpoint
    with ShardClient(5, endpoint, TOKEN, timeout_s=10) as client:
        with pytest.raises(TransportError) as caught:
            call(client, make_push(0))
        assert (caught.value.shard, caught.value.code) == (5, "UNAVAILABLE")


def test_a_lost_shard_does_not_answer(
    start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    shard = start_shard()
    client = serve(shard)
    shard.close()
    for call in CALLS.values():
        with pytest.raises(TransportError, match="shard 0 was lost: it does not run") as caught:
            call(client, make_push(0))
        assert caught.value.code == "UNAVAILABLE"


@every_call
def test_a_busy_shard_does_not_answer_and_may_be_asked_again(
    call: Callable[[ShardClient, Push], object], make_push: MakePush, serve: Serve
) -> None:
    busy = TransportError(3, "BUSY", "no room in its queue for 30 s")
    client = serve(FakeShard(error=busy), index=3)
    with pytest.raises(TransportError) as caught:
        call(client, make_push(0))
    assert vars(caught.value) == {
        "shard": 3,
        "code": "RESOURCE_EXHAUSTED",
        "detail": f"{client.endpoint}: no room in its queue for 30 s",
    }


def test_a_fetch_of_weights_that_are_not_known_is_refused(
    start_shard: StartShard, serve: Serve
) -> None:
    client = serve(start_shard())
    with grpc.insecure_channel(client.endpoint) as channel:
        fetch = channel.unary_stream(f"/{SERVICE}/Fetch", encode, None)
        with pytest.raises(grpc.RpcError) as caught:
            list(fetch(pb.FetchRequest(weights=99), timeout=30, metadata=authorization(TOKEN)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.healthy()


def test_any_error_of_a_shard_is_no_answer(make_push: MakePush, serve: Serve) -> None:
    client = serve(FakeShard(error=RuntimeError("a bug")))
    with pytest.raises(TransportError) as caught:
        client.push(make_push(0))
    assert caught.value.code == "UNKNOWN"


def test_a_client_finds_a_server_that_came_back(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    with ShardServer(shard, size=4, token=TOKEN, n_clients=1) as server:
        endpoint = server.endpoint
        client = ShardClient(0, endpoint, TOKEN, timeout_s=30)
        assert client.push(make_push(0)).status is PushStatus.APPLIED
    with pytest.raises(TransportError):
        client.state()
    port = int(endpoint.rpartition(":")[2])
    with ShardServer(shard, size=4, token=TOKEN, n_clients=1, port=port), client:
        for _ in range(100):  # it waits to connect again, a second at most
            try:
                reply = client.push(make_push(0))
                break
            except TransportError:
                channel_ready(client)
        assert reply.status is PushStatus.ALREADY_APPLIED


def channel_ready(client: ShardClient) -> None:
    grpc.channel_ready_future(client._channel).result(timeout=30)


def test_a_call_under_way_when_the_server_stops_is_answered(
    make_push: MakePush, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, released = threading.Event(), threading.Event()
    reply = PushReply(status=PushStatus.APPLIED, version=Version(1, 1))

    class Slow(FakeShard):
        def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
            reached.set()
            assert released.wait(60)
            return reply

    with ThreadPoolExecutor(1) as pool:
        with ShardServer(Slow(), size=4, token=TOKEN, n_clients=1) as server:
            stop = server._server.stop

            def stop_then_release(grace: float | None) -> threading.Event:
                stopped = stop(grace)
                released.set()
                return stopped

            monkeypatch.setattr(server._server, "stop", stop_then_release)
            client = ShardClient(0, server.endpoint, TOKEN, timeout_s=30)
            pushing = pool.submit(client.push, make_push(0))
            assert reached.wait(30)
        assert pushing.result(30) == reply
        client.close()


def test_the_log_of_a_served_shard_is_the_shards(
    start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    shard = start_shard()
    client = serve(shard)
    for item in range(3):
        client.push(make_push(item, replica=item))
    client.state()
    (name,) = shard.spec.storage.logs("pushes")
    _, entries = read_log(shard.spec.storage, name)
    assert [(e.item, e.clock, e.replica) for e in entries] == [(0, 1, 0), (1, 2, 1), (2, 3, 2)]


def test_a_vector_of_many_chunks_goes_both_ways(
    start_shard: StartShard, make_push: MakePush, serve: Serve
) -> None:
    size = 3 * CHUNK_NBYTES // 4 + 7
    shard = start_shard(size)
    client = serve(shard, size=size)
    gradient = torch.arange(size, dtype=torch.float32)
    assert len(list(chunks(gradient))) == 4
    out = torch.empty(size)
    client.push(make_push(0, gradient), fetch_into=out)
    assert torch.equal(out, -gradient)


def test_a_process_lost_is_not_a_refusal(make_push: MakePush, serve: Serve) -> None:
    client = serve(FakeShard(error=ProcessLostError("shard 0", "no space")))
    with pytest.raises(TransportError, match="no space"):
        client.fetch(torch.empty(4), begin=0)


# Pauses and snapshots


def test_a_pause_and_a_save_go_through_the_wire(
    start_shard: StartShard,
    make_push: MakePush,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, begun = threading.Semaphore(0), threading.Semaphore(0)
    wait, begin = Pause.wait, Gate.begin

    def watched_wait(pause: Pause) -> None:
        held.release()
        wait(pause)

    def watched_begin(gate: Gate, pause: Pause) -> None:
        begin(gate, pause)
        begun.release()

    monkeypatch.setattr(Pause, "wait", watched_wait)
    monkeypatch.setattr(Gate, "begin", watched_begin)
    shard = start_shard(index=1, n_shards=2)
    client = serve(shard)
    client.push(make_push(0))
    assert client.pause(600.0) == shard.state()
    assert begun.acquire(timeout=60)
    with ThreadPoolExecutor(2) as pool:
        later = pool.submit(client.push, make_push(2))
        assert held.acquire(timeout=60)
        assert client.push(make_push(0)).status is PushStatus.ALREADY_APPLIED
        saving = pool.submit(client.save, 17, ((0, 2),), 600.0)
        assert begun.acquire(timeout=60)
        assert held.acquire(timeout=60)  # it waits for the other pause now
        assert client.push(make_push(1)).status is PushStatus.APPLIED
        file = saving.result(60)
        assert later.result(60).status is PushStatus.APPLIED
    assert (file.name, file.n_shards) == ("shard-00001-of-00002.safetensors", 2)
    assert (file.state.applied, file.state.clock, file.state.repeated) == (((0, 2),), 2, 1)
    assert file.paused_s > 0.0
    found = read(shard.spec.storage, 17, file)
    assert found.tensors["parameters"].tolist() == [-2.0] * 4
    assert found.about["account"]["applied"] == [[0, 2]]


def test_a_shard_that_cannot_be_saved_says_so_through_the_wire(
    start_shard: StartShard, serve: Serve, tmp_path: Path
) -> None:
    shard = start_shard(index=3, n_shards=4)
    client = serve(shard, index=3)
    (tmp_path / "snapshots").write_text("")
    with pytest.raises(ShardRefusedError) as caught:
        client.save(0, (), 0.0)
    assert (caught.value.shard, caught.value.reason) == (3, "cannot_save")
    assert caught.value.detail.startswith(f"cannot write to {tmp_path}: ")
    assert client.healthy()


def test_a_save_may_take_longer_than_other_calls(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(FakeShard(), timeout_s=5.0)
    timeouts: list[float] = []
    for name in ("_pause", "_save"):
        call = getattr(client, name)

        def told(request: Any, *, call: Any = call, timeout: float, **rest: Any) -> Any:
            timeouts.append(timeout)
            return call(request, timeout=timeout, **rest)

        monkeypatch.setattr(client, name, told)
    client.pause(1.0)
    client.save(0, (), 30.0)
    assert timeouts == [5.0, SAVE_S + 30.0]
