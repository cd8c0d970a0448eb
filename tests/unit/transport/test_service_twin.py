"""A twin behind a server of its own: the same as beside its primary, and let go of as fast."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.client import ShardClient
from distbelief.transport.codec import CHUNK_NBYTES, Chunk, byte_chunks, decoder, encode
from distbelief.transport.guard import authorization
from distbelief.transport.service import FREE_THREADS, SERVICE, ShardServer
from distbelief.transport.twin_service import HEAD_NBYTES, STATE_NBYTES
from distbelief.types import Push, PushStatus, Version

TOKEN = "the run's token"
BEGIN = 10
MakePush = Callable[..., Push]


class Bench:
    """Shards of one range, each behind a server, and clients of them."""

    def __init__(self, stack: ExitStack, make_spec: Callable[..., ShardSpec]) -> None:
        self._stack, self._make_spec = stack, make_spec
        self.servers: dict[int, ShardServer] = {}

    def start(
        self,
        incarnation: int = 1,
        size: int = 4,
        fence: Callable[[], None] | None = None,
        **changes: Any,
    ) -> Shard:
        spec = self._make_spec(size, begin=BEGIN, incarnation=incarnation, **changes)
        shard = self._stack.enter_context(Shard(spec, connect=self._connect))
        server = ShardServer(shard, size=size, token=TOKEN, n_clients=2, fence=fence)
        self.servers[incarnation] = self._stack.enter_context(server)
        self._stack.callback(shard.abandon)
        return shard

    def _connect(self, address: str) -> ShardClient:
        return ShardClient(0, address, TOKEN, timeout_s=60.0)

    def client(self, incarnation: int = 1) -> ShardClient:
        endpoint = self.servers[incarnation].endpoint
        client = ShardClient(0, endpoint, TOKEN, timeout_s=60.0)
        return self._stack.enter_context(client)

    def pair(self, size: int = 4, **changes: Any) -> tuple[Shard, Shard, ShardClient]:
        """A primary that feeds a twin, and a client of the primary."""
        primary = self.start(1, size, **changes)
        twin = self.start(2, size, **{**changes, "twin": True})
        client = self.client()
        client.load(torch.zeros(size))
        client.feed_twin(self.servers[2].endpoint)
        return primary, twin, client


@pytest.fixture
def bench(make_spec: Callable[..., ShardSpec]) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, make_spec)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


def image(shard: Shard) -> bytearray:
    return shard._writer.ask(shard._contents.image)


class Stuck:
    """Keeps a shard's writer busy until it is let go."""

    def __init__(self, shard: Shard, pool: ThreadPoolExecutor) -> None:
        self._reached, self._let_go = threading.Event(), threading.Event()
        self._task = pool.submit(shard._writer.ask, self._wait)
        assert self._reached.wait(60)

    def _wait(self) -> None:
        self._reached.set()
        assert self._let_go.wait(60)

    def end(self) -> None:
        self._let_go.set()
        self._task.result(60)


def is_waiting(shard: Shard, n: int) -> None:
    """Returns once so many tasks wait for a shard's writer."""
    while shard._writer.queued < n:
        pass


def test_through_the_wire_a_twin_is_bit_for_bit_its_primary(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    size = CHUNK_NBYTES // 4 + 7  # several chunks, the last of them short
    primary, twin, client = bench.pair(
        size,
        optimizer=OptimizerConfig(rule="nesterov", momentum=0.9, weight_decay=0.01),
        averaging=AveragingConfig(average="exponential", average_every=1),
    )
    for item in range(3):
        base = Version(0, 5) if item == 2 else Version(1, 0)
        push = make_push(item, torch.randn(size), begin=BEGIN, base=base, rate=0.1 + item / 7)
        assert client.push(push).status is PushStatus.APPLIED
    client.set_aside((7, 8), "why: ∞")
    parts = [
        make_push(3, torch.randn(end - begin), begin=BEGIN + begin, skipped=(4, 2))
        for begin, end in ((0, 100), (100, size))
    ]
    for future in [pool.submit(client.push, part) for part in parts]:
        assert future.result(60).status is PushStatus.APPLIED
    assert image(twin) == image(primary)
    assert (client.state().twin, client.state().follows) == (2, 0)
    state = bench.client(2).state()
    assert (state.twin, state.follows, state.clock) == (0, 1, 4)
    assert state.applied == client.state().applied
    assert client.feed_twin(bench.servers[2].endpoint) == Version(1, 4)  # again, as it is now
    assert image(twin) == image(primary)


def test_a_twin_serves_nobody_until_it_is_promoted(bench: Bench, make_push: MakePush) -> None:
    _, _, client = bench.pair()
    client.push(make_push(0, begin=BEGIN))
    twin = bench.client(2)
    push = make_push(1, begin=BEGIN, incarnation=2)
    calls: list[Callable[[], object]] = [
        lambda: twin.push(push),
        lambda: twin.fetch(torch.empty(4), begin=BEGIN),
        lambda: twin.load(torch.zeros(4)),
        lambda: twin.set_aside((1,), "why"),
        lambda: twin.save(0, (), 0.0),
        lambda: twin.pause(0.1),
        lambda: twin.feed_twin("127.0.0.1:1"),
    ]
    for call in calls:
        with pytest.raises(TransportError, match="does not serve yet"):
            call()
    assert not twin.healthy()
    assert twin.promote() == twin.promote()
    assert twin.healthy()
    assert twin.push(push).version == Version(2, 2)
    with pytest.raises(ShardRefusedError) as caught:
        twin.adopt(b"1234", Version(1, 0))
    assert caught.value.reason == "promoted"


def test_a_primary_whose_twin_was_promoted_answers_nobody(
    bench: Bench, make_push: MakePush
) -> None:
    primary, _, client = bench.pair()
    bench.client(2).promote()
    with pytest.raises(TransportError, match="its twin serves in its place") as caught:
        client.push(make_push(0, begin=BEGIN))
    assert caught.value.code == "UNAVAILABLE"
    assert primary.failure == "its twin serves in its place"


def test_a_twin_whose_process_is_gone_is_waited_for_until_it_is_released(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    primary, twin, client = bench.pair()
    twin.abandon()
    bench.servers[2].__exit__(None, None, None)
    waiting = pool.submit(client.push, make_push(0, begin=BEGIN))
    while not primary._writer._tasks.unfinished_tasks > 2:  # load and feeding are the first two
        pass
    assert not waiting.done()
    client.release_twin()
    assert waiting.result(60).status is PushStatus.APPLIED
    assert client.state().twin == 0


def test_a_twin_that_hangs_is_released_though_every_thread_waits(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    primary, twin, client = bench.pair()
    stuck = Stuck(twin, pool)
    n_waiting = bench.servers[1]._pool._max_workers - FREE_THREADS
    pushes = [pool.submit(client.push, make_push(i, begin=BEGIN)) for i in range(n_waiting)]
    while bench.servers[1]._waiting._value:  # until all of them have a thread
        pass
    with pytest.raises(TransportError, match="too many calls wait") as caught:
        client.state()
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    client.release_twin()
    assert {push.result(60).status for push in pushes} == {PushStatus.APPLIED}
    stuck.end()
    assert primary.state().clock == n_waiting
    assert twin.state().clock <= 1  # what was cut off may have arrived


@pytest.mark.parametrize("end", ["abandon", "close"])
def test_an_end_cuts_the_call_to_a_twin_that_hangs(
    end: str, bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    primary, twin, client = bench.pair()
    stuck = Stuck(twin, pool)
    waiting = pool.submit(client.push, make_push(0, begin=BEGIN))
    is_waiting(twin, 1)  # the primary is in the middle of the call
    getattr(primary, end)()
    with pytest.raises(TransportError, match="before its twin had an item"):
        waiting.result(60)
    stuck.end()
    assert primary.version.clock == 0


def test_a_state_that_hangs_on_its_way_is_released(
    bench: Bench, make_push: MakePush, pool: ThreadPoolExecutor
) -> None:
    bench.start(1)
    twin = bench.start(2, twin=True)
    client = bench.client()
    client.load(torch.zeros(4))
    stuck = Stuck(twin, pool)
    feeding = pool.submit(client.feed_twin, bench.servers[2].endpoint)
    is_waiting(twin, 1)
    client.release_twin()
    with pytest.raises(TransportError):
        feeding.result(60)
    stuck.end()
    assert client.push(make_push(0, begin=BEGIN)).status is PushStatus.APPLIED
    assert client.state().twin == 0


# Fences


class Fence:
    """Lets so many questions pass, and then says that the shard has been given up."""

    def __init__(self) -> None:
        self.passes = 1_000_000

    def __call__(self) -> None:
        self.passes -= 1
        if self.passes < 0:
            raise ProcessLostError("shard 0", "it has been given up")


def test_a_shard_that_was_given_up_answers_nobody(bench: Bench, make_push: MakePush) -> None:
    fence = Fence()
    shard = bench.start(1, fence=fence)
    client = bench.client()
    client.load(torch.zeros(4))
    before = image(shard)
    fence.passes = 0
    calls: list[Callable[[], object]] = [
        lambda: client.push(make_push(0, begin=BEGIN)),
        lambda: client.fetch(torch.empty(4), begin=BEGIN),
        lambda: client.load(torch.ones(4)),
        lambda: client.set_aside((1,), "why"),
        lambda: client.save(0, (), 0.0),
        lambda: client.pause(0.1),
        lambda: client.feed_twin("127.0.0.1:1"),
        lambda: client.promote(),
        lambda: client.adopt(b"1234", Version(0, 0)),
        lambda: client.mirror(make_push(0, begin=BEGIN), clock=1, staleness=0),
        lambda: client.mirror_set_aside((1,), "why"),
    ]
    for call in calls:
        with pytest.raises(TransportError, match="it has been given up") as caught:
            call()
        assert caught.value.code == "UNAVAILABLE"
    assert image(shard) == before
    assert client.state().loaded
    assert client.healthy()
    client.release_twin()


def test_what_was_applied_is_not_acknowledged_by_one_that_was_given_up_meanwhile(
    bench: Bench, make_push: MakePush
) -> None:
    fence = Fence()
    primary = bench.start(1)
    twin = bench.start(2, twin=True, fence=fence)
    primary.load(torch.zeros(4))
    primary.feed_twin(bench.servers[2].endpoint)
    client = bench.client(2)
    fence.passes = 1
    with pytest.raises(TransportError, match="it has been given up"):
        client.mirror(make_push(0, begin=BEGIN), clock=1, staleness=0)
    assert twin.promote().clock == 1
    fence.passes = 1
    with pytest.raises(TransportError, match="it has been given up"):
        client.push(make_push(1, begin=BEGIN, incarnation=2))
    assert twin.state().clock == 2


# What a stranger may send


def stream(bench: Bench, method: str, *messages: bytes) -> tuple[str, str]:
    """The status of a call to a twin, and what it says."""
    endpoint = bench.servers[2].endpoint
    with grpc.insecure_channel(endpoint) as channel:
        call = channel.stream_unary(f"/{SERVICE}/{method}")
        try:
            call(iter(messages), timeout=60, metadata=authorization(TOKEN))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


def adopting(nbytes: int) -> bytes:
    version = pb.Version(incarnation=1, clock=9)
    header = pb.AdoptHeader(source=version, nbytes=nbytes)
    return pb.AdoptRequest(header=header).SerializeToString()


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((), "begins with its header"),
        ((encode(Chunk(0, memoryview(bytes(8)))),), "begins with its header"),
        ((adopting(0),), "a state of 0 bytes"),
        ((adopting(7),), "a state of 7 bytes"),
        ((adopting(STATE_NBYTES * 4 + HEAD_NBYTES + 4),), f"there may be {(64 << 20) + 64}"),
        ((adopting(2**63),), "there may be"),
        ((adopting(16), encode(Chunk(0, memoryview(bytes(12))))), "3 of 4 elements came"),
        ((adopting(8), encode(Chunk(0, memoryview(bytes(12))))), "3 elements at 0"),
        ((adopting(8), adopting(8)), "a chunk was expected"),
    ],
)
def test_a_malformed_state_is_refused_and_changes_nothing(
    messages: tuple[bytes, ...], problem: str, bench: Bench, make_push: MakePush
) -> None:
    _, twin, client = bench.pair()
    client.push(make_push(0, begin=BEGIN))
    before = image(twin)
    code, detail = stream(bench, "Adopt", *messages)
    assert code == "INVALID_ARGUMENT"
    assert problem in detail
    assert image(twin) == before


def mirroring(push: Push, n_elements: int) -> bytes:
    header = records.mirror_to_wire(push, 1, 0)
    header.push.n_elements = n_elements
    return pb.MirrorRequest(header=header).SerializeToString()


@pytest.mark.parametrize("n_elements", [0, 3, 5, 2**63])
def test_a_mirrored_push_of_another_size_is_refused(
    n_elements: int, bench: Bench, make_push: MakePush
) -> None:
    _, twin, _ = bench.pair()
    before = image(twin)
    message = mirroring(make_push(0, begin=BEGIN), n_elements)
    code, detail = stream(bench, "Mirror", message)
    assert (code, detail) == (
        "INVALID_ARGUMENT",
        f"{n_elements} elements for a shard of 4",
    )
    assert image(twin) == before


def test_what_does_not_come_next_is_refused_by_name(bench: Bench, make_push: MakePush) -> None:
    bench.pair()
    client = bench.client(2)
    with pytest.raises(ShardRefusedError, match="does not follow clock 0") as caught:
        client.mirror(make_push(0, begin=BEGIN), clock=2, staleness=0)
    assert caught.value.reason == "follows_no_more"


# On the wire


@pytest.mark.parametrize("staleness", [None, 0, 3])
def test_a_mirrored_push_survives_the_wire(staleness: int | None, make_push: MakePush) -> None:
    push = make_push(5, rate=0.1, skipped=(3, 4), base=Version(1, 7), begin=2**33)
    request = pb.MirrorRequest(header=records.mirror_to_wire(push, 9, staleness))
    decoded = decoder(pb.MirrorRequest)(encode(request))
    assert isinstance(decoded, pb.MirrorRequest)
    got, clock, stale = records.mirror_from_wire(decoded.header, push.gradient)
    assert (replace(got, gradient=push.gradient), clock, stale) == (push, 9, staleness)


@pytest.mark.parametrize("kind", [pb.MirrorRequest, pb.AdoptRequest])
def test_chunks_are_those_of_the_generated_classes(kind: Any) -> None:
    content = bytes(range(16))
    (chunk,) = byte_chunks(memoryview(content))
    expected = kind(chunk=pb.Chunk(offset=0, data=content))
    assert encode(chunk) == expected.SerializeToString()
    decoded = decoder(kind)(expected.SerializeToString())
    assert isinstance(decoded, Chunk)
    assert (decoded.offset, bytes(decoded.data)) == (0, content)
