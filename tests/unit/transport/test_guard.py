"""A shard's server before its handlers: the token, deadlines, and too many calls."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from distbelief.errors import TransportError
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.guard import MAX_CALL_S, authorization
from distbelief.transport.service import FREE_THREADS, SERVICE

TOKEN = "the run's token"
N_CLIENTS = 1
N_WAITING = 2 * N_CLIENTS + 16
N_THREADS = N_WAITING + FREE_THREADS
METHODS = tuple(pb.DESCRIPTOR.services_by_name["ParameterServer"].methods_by_name)
Code = grpc.StatusCode
Ask = Callable[..., tuple[grpc.StatusCode, str, list[bytes]]]


# The token


@pytest.mark.parametrize("method", [*METHODS, "NoSuchMethod"])
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        authorization("another token"),
        authorization(TOKEN[:-1]),
        authorization(""),
        (("authorization", TOKEN),),
        (("authorization-bin", authorization(TOKEN)[0][1]),),
        (*authorization(TOKEN), *authorization("another token")),
    ],
    ids=["none", "another", "shorter", "empty", "bare", "binary", "two"],
)
def test_without_the_token_nothing_is_answered(
    ask: Ask, method: str, metadata: tuple[tuple[str, Any], ...]
) -> None:
    metadata = tuple((k, v.encode() if k.endswith("-bin") else v) for k, v in metadata)
    assert ask(method, b"", metadata=metadata)[0] is Code.UNAUTHENTICATED


def test_who_has_no_token_keeps_no_thread_and_sends_next_to_nothing(
    victim: Any, channel: grpc.Channel
) -> None:
    released = threading.Event()
    sent = 0

    def nothing() -> Iterator[bytes]:
        released.wait(60)
        yield b""

    def without_end() -> Iterator[bytes]:
        nonlocal sent
        while not released.is_set():
            sent += 1
            yield bytes(1 << 20)

    try:
        for messages in (nothing, without_end):
            for method in ("State", "Push", "Fetch", "Load") * N_THREADS:
                call = channel.stream_stream(f"/{SERVICE}/{method}")(messages(), timeout=60)
                assert call.code() is Code.UNAUTHENTICATED
    finally:
        released.set()
    victim.is_unharmed()


# Calls without an end, and too many of them


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("timeout", [None, 2 * MAX_CALL_S])
def test_a_call_says_how_long_it_may_last(ask: Ask, method: str, timeout: float | None) -> None:
    code, reason, _ = ask(method, b"", timeout=timeout)
    assert (code, reason) == (Code.INVALID_ARGUMENT, "malformed")


def test_too_many_calls_at_once_are_turned_away(victim: Any) -> None:
    released = threading.Event()

    def nothing() -> Iterator[bytes]:
        released.wait(60)
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(victim.endpoint, options=options) for _ in range(4)]
    try:
        calls = [
            channels[i % 4].stream_stream(f"/{SERVICE}/Push")(
                nothing(), timeout=60, metadata=authorization(TOKEN)
            )
            for i in range(3 * N_WAITING)
        ]
        ended = threading.Semaphore(0)
        for call in calls:
            call.add_done_callback(lambda _: ended.release())
        for _ in range(2 * N_WAITING):
            assert ended.acquire(timeout=60)
        with pytest.raises(TransportError) as caught:
            victim.client.state()
        assert caught.value.code == "RESOURCE_EXHAUSTED"  # which the caller tries again
        released.set()
        codes = [call.code() for call in calls]
        assert codes.count(Code.RESOURCE_EXHAUSTED) == 2 * N_WAITING
        assert codes.count(Code.INVALID_ARGUMENT) == N_WAITING
    finally:
        released.set()
        for channel in channels:
            channel.close()
