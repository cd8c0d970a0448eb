"""Parts of pushes, and who sends how much, through a server and its clients."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

from distbelief.errors import TransportError
from distbelief.server.joint import Caller
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.client import ShardClient
from distbelief.transport.codec import CHUNK_NBYTES, Chunk, encode
from distbelief.transport.guard import authorization
from distbelief.transport.service import SERVICE, ShardServer
from distbelief.types import Push, PushReply, PushStatus, Refusal, Version

TOKEN = "the run's token"
BEGIN = 10
Serve = Callable[..., ShardClient]
MakePush = Callable[..., Push]


class Served:
    """One shard behind one server, and clients of it."""

    def __init__(self, stack: ExitStack, spec: ShardSpec, parts_wait_s: float) -> None:
        self._stack = stack
        self.shard = stack.enter_context(Shard(replace(spec, parts_wait_s=parts_wait_s)))
        self.shard.load(torch.zeros(spec.size))
        self.server = stack.enter_context(
            ShardServer(self.shard, size=spec.size, token=TOKEN, n_clients=4)
        )

    def client(self, sender: str = "") -> ShardClient:
        return self._stack.enter_context(
            ShardClient(0, self.server.endpoint, TOKEN, timeout_s=60.0, sender=sender)
        )


@pytest.fixture
def serve(make_spec: Callable[..., ShardSpec]) -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:

        def start(size: int = 6, *, parts_wait_s: float = 600.0) -> Served:
            return Served(stack, make_spec(size, begin=BEGIN), parts_wait_s)

        yield start


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released by each part that begins to wait for the others."""
    begun, wait = threading.Semaphore(0), Caller.wait

    def watched(caller: Caller, seconds: float | None = None) -> PushReply:
        begun.release()
        return wait(caller, seconds)

    monkeypatch.setattr(Caller, "wait", watched)
    return begun


def test_parts_through_the_wire_are_one_push(
    serve: Callable[..., Served], make_push: MakePush, waits: threading.Semaphore
) -> None:
    size = CHUNK_NBYTES // 2 + 6  # several chunks
    served = serve(size)
    gradient = torch.arange(1.0, size + 1)
    cuts = [0, 1, CHUNK_NBYTES // 4 + 3, size]
    outs = [torch.full((end - begin,), 7.0) for begin, end in itertools.pairwise(cuts)]
    with ThreadPoolExecutor(3) as pool:
        calls = []
        for number, out in enumerate(outs):
            part = gradient[cuts[number] : cuts[number + 1]].clone()
            push = make_push(5, part, begin=BEGIN + cuts[number])
            client = served.client()
            calls.append(pool.submit(client.push, push, fetch_into=out if number else None))
            assert waits.acquire(timeout=60)
        replies = [call.result(60) for call in calls]
    assert [reply.fetched for reply in replies] == [None, Version(1, 1), Version(1, 1)]
    assert {(r.status, r.version, r.staleness) for r in replies} == {
        (PushStatus.APPLIED, Version(1, 1), 0)
    }
    assert outs[0].tolist() == [7.0]
    assert torch.equal(torch.cat(outs[1:]), -gradient[1:])
    state = served.client().state()
    assert (state.clock, state.applied, state.traffic) == (1, ((5, 6),), {})


def test_a_refusal_of_one_part_reaches_all_through_the_wire(
    serve: Callable[..., Served], make_push: MakePush, waits: threading.Semaphore
) -> None:
    served = serve()
    out = torch.full((2,), 7.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            served.client().push, make_push(0, [1, 1], begin=BEGIN), fetch_into=out
        )
        assert waits.acquire(timeout=60)
        reply = served.client().push(make_push(0, [1, float("nan")], begin=BEGIN + 2))
        assert waiting.result(60) == reply
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, Refusal.NOT_FINITE)
    assert out.tolist() == [7.0, 7.0]
    late = served.client().push(make_push(0, [1, 1], begin=BEGIN, lease=0))
    assert late.refusal is Refusal.LEASE


@pytest.mark.parametrize(("begin", "n"), [(9, 2), (15, 2), (16, 1), (10, 7), (0, 3)])
def test_a_part_that_the_shard_does_not_hold_is_refused(
    begin: int, n: int, serve: Callable[..., Served], make_push: MakePush
) -> None:
    served = serve()
    out = torch.full((n,), 7.0)
    reply = served.client().push(make_push(0, size=n, begin=begin), fetch_into=out)
    assert (reply.status, reply.refusal) == (PushStatus.REFUSED, Refusal.SIZE)
    assert reply.detail == f"range [{begin}, {begin + n}), this shard has [10, 16)"
    assert out.tolist() == [7.0] * n
    assert served.shard.state().refused == {"size": 1}


@pytest.mark.parametrize(
    ("n_sent", "text"),
    [(1, "1 of 2 elements came"), (3, "3 elements at 0, where 0 of 2 had come")],
)
def test_a_part_of_another_length_than_announced_is_malformed(
    n_sent: int, text: str, serve: Callable[..., Served]
) -> None:
    served = serve()
    made = pb.PushHeader(
        item=0, begin=12, n_elements=2, incarnation=1, layout="fingerprint", rate=1.0
    )
    vector = Chunk(0, memoryview(torch.ones(n_sent).numpy().tobytes()))
    messages = [pb.PushRequest(header=made).SerializeToString(), encode(vector)]
    with grpc.insecure_channel(served.server.endpoint) as channel:
        push = channel.stream_stream(f"/{SERVICE}/Push", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            list(push(iter(messages), timeout=30, metadata=authorization(TOKEN)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == text
    assert served.shard._pushes._parts._joints == {}


def test_a_part_whose_others_do_not_come_may_be_tried_again(
    serve: Callable[..., Served], make_push: MakePush
) -> None:
    served = serve(parts_wait_s=0.01)
    client = served.client()
    for begin in (10, 13, 10):
        with pytest.raises(TransportError, match="no other parts of item 4") as caught:
            client.push(make_push(4, [1, 1, 1], begin=begin, lease=begin))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        if begin == 13:  # it has taken the place of the first, whose lease is older
            break
    late = client.push(make_push(4, [1, 1, 1], begin=10, lease=10))
    assert late.refusal is Refusal.LEASE
    assert client.push(make_push(4, [1, 1, 1], begin=10, lease=13)).status is PushStatus.APPLIED


def test_a_retry_whose_first_call_still_waits_is_answered(
    serve: Callable[..., Served], make_push: MakePush, waits: threading.Semaphore
) -> None:
    served = serve()
    gone = ShardClient(0, served.server.endpoint, TOKEN, timeout_s=60.0)
    client = served.client()
    with ThreadPoolExecutor(2) as pool:
        lost = pool.submit(gone.push, make_push(0, [1, 1, 1], begin=10))
        assert waits.acquire(timeout=60)
        gone.close()
        with pytest.raises((TransportError, ValueError, grpc.RpcError)):
            lost.result(60)
        out = torch.empty(3)
        again = pool.submit(client.push, make_push(0, [1, 1, 1], begin=10), fetch_into=out)
        assert waits.acquire(timeout=60)
        reply = client.push(make_push(0, [1, 1, 1], begin=13))
        assert (reply.status, again.result(60).status) == 2 * (PushStatus.APPLIED,)
    assert out.tolist() == [-1.0] * 3
    assert served.shard.state().clock == 1


# Traffic


def test_traffic_is_counted_by_sender(serve: Callable[..., Served], make_push: MakePush) -> None:
    served = serve()
    a, b, silent = served.client("replica-1/stage-0"), served.client("b"), served.client()
    out = torch.empty(6)
    a.fetch(out[:2], begin=12)  # 8
    a.fetch(out, begin=10, unless=Version(1, 0))  # nothing comes
    a.push(make_push(0, size=6, begin=10))  # 24
    b.push(make_push(1, size=6, begin=10), fetch_into=out)  # 24 + 24
    b.push(make_push(1, size=6, begin=10))  # a repeat: 24
    b.push(make_push(2, size=7, begin=10))  # refused before it was received
    b.push(make_push(2, float("nan"), size=6, begin=10), fetch_into=out)  # refused after: 24
    silent.fetch(out, begin=10)
    silent.push(make_push(3, size=6, begin=10))
    expected = {"replica-1/stage-0": 32, "b": 96}
    assert [client.state().traffic for client in (a, b, silent)] == 3 * [expected]
    assert served.shard.state().traffic == {}  # the shard itself does not know who called


def test_a_part_counts_as_what_it_is(
    serve: Callable[..., Served], make_push: MakePush, waits: threading.Semaphore
) -> None:
    served = serve()
    with ThreadPoolExecutor(1) as pool:
        a = served.client("a")
        half = pool.submit(a.push, make_push(0, [1, 1], begin=10), fetch_into=torch.empty(2))
        assert waits.acquire(timeout=60)
        assert a.state().traffic == {"a": 8}
        served.client("b").push(make_push(0, [1] * 4, begin=12))
        half.result(60)
    assert a.state().traffic == {"a": 16, "b": 16}


def test_any_sender_may_be_named(serve: Callable[..., Served]) -> None:
    served = serve()
    for sender in ("é\n", "x" * 100):
        served.client(sender).fetch(torch.empty(1), begin=10)
    assert served.client().state().traffic == {"__": 4, "x" * 64: 4}


def test_a_sender_of_another_client_is_cut_to_size(serve: Callable[..., Served]) -> None:
    served = serve()
    with grpc.insecure_channel(served.server.endpoint) as channel:
        fetch: Any = channel.unary_stream(f"/{SERVICE}/Fetch", encode, None)
        metadata = (*authorization(TOKEN), ("distbelief-sender", "a b" + 100 * "c"))
        list(fetch(pb.FetchRequest(begin=10, n_elements=6), timeout=30, metadata=metadata))
    assert served.client().state().traffic == {"a_b" + 61 * "c": 24}
