"""A shard's server under attack: calls as whoever reaches its port could make them."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import MAX_HEADER_NBYTES, Chunk, encode
from distbelief.transport.guard import authorization
from distbelief.transport.records import MAX_PAUSE_S, MAX_TEXT_LENGTH
from distbelief.transport.service import MAX_MESSAGE_NBYTES, SERVICE

TOKEN = "the run's token"
BEGIN, SIZE = 10, 4
MAX_GROWTH_NBYTES = 64 << 20
METHODS = tuple(pb.DESCRIPTOR.services_by_name["ParameterServer"].methods_by_name)
Code = grpc.StatusCode
Ask = Callable[..., tuple[grpc.StatusCode, str, list[bytes]]]


def header(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "item": 7,
        "lease": 8,
        "begin": BEGIN,
        "n_elements": SIZE,
        "incarnation": 1,
        "base": pb.Version(incarnation=1, clock=1),
        "rate": 1.0,
        "examples": 10,
        "layout": "fingerprint",
    }
    return pb.PushRequest(header=pb.PushHeader(**{**fields, **changes})).SerializeToString()


def chunk(offset: int, n: int) -> bytes:
    return encode(Chunk(offset, memoryview(bytes(4 * n))))


def load(n: int) -> bytes:
    return pb.LoadRequest(header=pb.LoadHeader(n_elements=n)).SerializeToString()


def save(*items: tuple[int, int], seconds: float = 0.0) -> bytes:
    intervals = [pb.Interval(begin=begin, end=end) for begin, end in items]
    return pb.SaveRequest(snapshot=5, items=intervals, seconds=seconds).SerializeToString()


def set_aside(items: list[int], reason: str = "why") -> bytes:
    return pb.SetAsideRequest(items=items, reason=reason).SerializeToString()


def pause(seconds: float) -> bytes:
    return pb.PauseRequest(seconds=seconds).SerializeToString()


# Sizes and memory


@pytest.mark.parametrize("method", METHODS)
def test_a_message_that_is_too_large_is_not_taken(ask: Ask, memory: Any, method: str) -> None:
    message = bytes(MAX_MESSAGE_NBYTES + 1)
    with memory:
        assert ask(method, message)[0] is Code.RESOURCE_EXHAUSTED
    assert memory.growth < MAX_GROWTH_NBYTES


@pytest.mark.parametrize("method", METHODS)
def test_metadata_that_is_too_large_is_not_taken(ask: Ask, method: str) -> None:
    metadata = (*authorization(TOKEN), *((f"key-{i}", "x" * 4000) for i in range(250)))
    assert ask(method, b"", metadata=metadata)[0] is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Push", header(skipped=range(MAX_HEADER_NBYTES))),
        ("Push", header(skipped=[2**63] * MAX_HEADER_NBYTES)),
        ("Push", header(layout="x" * MAX_HEADER_NBYTES)),
        ("SetAside", set_aside([9] * MAX_HEADER_NBYTES)),
        ("SetAside", set_aside([9], "x" * MAX_HEADER_NBYTES)),
        ("Save", save(*((2 * i, 2 * i + 1) for i in range(MAX_HEADER_NBYTES // 4)))),
        ("Fetch", b"\x50\x01" * (1 << 20)),  # fields that nobody knows
    ],
    ids=["skipped", "skipped_large", "layout", "items", "reason", "intervals", "unknown"],
)
def test_what_would_take_many_times_its_size_is_not_decoded(
    ask: Ask, memory: Any, method: str, message: bytes
) -> None:
    if len(message) > MAX_MESSAGE_NBYTES:
        message = message[:MAX_MESSAGE_NBYTES]
    with memory:
        code, reason, _ = ask(method, message)
    assert (code, reason) == (Code.INVALID_ARGUMENT, "malformed")
    assert memory.growth < MAX_GROWTH_NBYTES


# What is malformed, and what is refused


def malformed() -> dict[str, tuple[str, list[bytes]]]:
    whole = chunk(0, SIZE)
    return {
        "push_nothing": ("Push", []),
        "push_garbage": ("Push", [b"\xff\xff\xff"]),
        "push_truncated": ("Push", [header()[:-3]]),
        "push_no_header": ("Push", [whole]),
        "push_empty": ("Push", [b""]),
        "push_two_headers": ("Push", [header(), header()]),
        "push_no_chunks": ("Push", [header()]),
        "push_too_few": ("Push", [header(), chunk(0, 3)]),
        "push_too_many": ("Push", [header(), chunk(0, 5)]),
        "push_gap": ("Push", [header(), chunk(0, 2), chunk(3, 1)]),
        "push_overlap": ("Push", [header(), chunk(0, 2), chunk(1, 2)]),
        "push_backwards": ("Push", [header(), chunk(2, 2), chunk(0, 2)]),
        "push_far": ("Push", [header(), chunk(2**64 - 1, 4)]),
        "push_empty_chunk": ("Push", [header(), chunk(0, 0), whole]),
        "push_half_an_element": ("Push", [header(), b"\x12\x05\x12\x03abc"]),
        "push_chunk_beyond_itself": ("Push", [header(), b"\x12\xff\xff\xff\xff\x0f"]),
        "push_chunk_without_end": ("Push", [header(), b"\x12" + b"\xff" * 20]),
        "push_chunk_of_groups": ("Push", [header(), b"\x12\x01\x0b"]),
        "push_layout": ("Push", [header(layout="x" * (MAX_TEXT_LENGTH + 1)), whole]),
        "load_size": ("Load", [load(SIZE + 1)]),
        "load_huge": ("Load", [load(2**64 - 1)]),
        "load_nothing": ("Load", []),
        "load_too_few": ("Load", [load(SIZE), chunk(0, 3)]),
        "load_too_many": ("Load", [load(SIZE), chunk(0, 5)]),
        "load_no_header": ("Load", [whole]),
        "fetch_huge": ("Fetch", [pb.FetchRequest(n_elements=2**64 - 1).SerializeToString()]),
        "fetch_weights": ("Fetch", [pb.FetchRequest(weights=99).SerializeToString()]),
        "fetch_truncated": ("Fetch", [b"\x12\x7f"]),
        "fetch_nothing": ("Fetch", []),
        "state_garbage": ("State", [b"\xff\xff\xff"]),
        "state_nothing": ("State", []),
        "set_aside_reason": ("SetAside", [set_aside([9], "x" * (MAX_TEXT_LENGTH + 1))]),
        "set_aside_text": ("SetAside", [b"\x12\x02\xff\xff"]),
        "pause_long": ("Pause", [pause(MAX_PAUSE_S + 1)]),
        "pause_negative": ("Pause", [pause(-1.0)]),
        "pause_nan": ("Pause", [pause(float("nan"))]),
        "pause_infinite": ("Pause", [pause(float("inf"))]),
        "save_long": ("Save", [save(seconds=1e300)]),
        "save_nan": ("Save", [save(seconds=float("nan"))]),
        "save_backwards": ("Save", [save((5, 4))]),
        "save_empty": ("Save", [save((5, 5))]),
        "save_disorder": ("Save", [save((5, 6), (2, 3))]),
        "save_overlap": ("Save", [save((0, 6), (5, 9))]),
    }


@pytest.mark.parametrize(("method", "messages"), malformed().values(), ids=malformed())
def test_what_is_malformed_changes_nothing(ask: Ask, method: str, messages: list[bytes]) -> None:
    code, reason, answers = ask(method, *messages)
    assert (code, reason, answers) == (Code.INVALID_ARGUMENT, "malformed", [])


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"layout": "another"}, "layout"),
        ({"layout": "x" * MAX_TEXT_LENGTH}, "layout"),
        ({"incarnation": 2**64 - 1}, "incarnation"),
        ({"base": pb.Version(incarnation=1, clock=2**64 - 1)}, "incarnation"),
        ({"base": pb.Version(incarnation=2**64 - 1)}, "incarnation"),
        ({"n_elements": 2**64 - 1}, "size"),
        ({"n_elements": 2**63}, "size"),
        ({"n_elements": 0}, "size"),
        ({"n_elements": SIZE + 1}, "size"),
        ({"begin": 2**64 - 1}, "size"),
        ({"begin": 2**64 - 1, "n_elements": 2**64 - 1}, "size"),
        ({"begin": BEGIN - 1}, "size"),
        ({"begin": BEGIN + 1}, "size"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"rate": -1.0}, "rate"),
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing(ask: Ask, changes: dict[str, Any], refusal: str) -> None:
    code, _, answers = ask("Push", header(**changes), chunk(0, SIZE))
    result = pb.VectorReply.FromString(answers[0]).pushed
    assert (code, result.status, result.refusal, len(answers)) == (
        Code.OK,
        pb.PUSH_STATUS_REFUSED,
        refusal,
        1,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_is_refused(ask: Ask, value: float) -> None:
    data = memoryview(struct.pack("<4f", 1.0, value, value, 1.0))
    code, _, answers = ask("Push", header(), encode(Chunk(0, data)))
    assert code is Code.OK
    assert pb.VectorReply.FromString(answers[0]).pushed.refusal == "not_finite"


@pytest.mark.parametrize(
    ("method", "message", "reason"),
    [
        ("Fetch", pb.FetchRequest(begin=2**64 - 1, n_elements=4).SerializeToString(), "size"),
        ("Fetch", pb.FetchRequest(begin=BEGIN + 1, n_elements=4).SerializeToString(), "size"),
        ("Save", save((0, 2**63)), "cannot_save"),
        ("Save", save((0, 2**64 - 1), seconds=1.0), "cannot_save"),
    ],
)
def test_what_a_shard_cannot_do_it_refuses(
    ask: Ask, method: str, message: bytes, reason: str
) -> None:
    assert ask(method, message)[:2] == (Code.FAILED_PRECONDITION, reason)


def test_values_do_not_come_after_the_first_push(ask: Ask) -> None:
    found = ask("Load", load(SIZE), chunk(0, SIZE))
    assert found[:2] == (Code.FAILED_PRECONDITION, "too_late")


def test_a_stream_without_end_ends_with_what_was_announced(
    victim: Any, channel: grpc.Channel
) -> None:
    def parts(first: bytes) -> Iterator[bytes]:
        yield first
        yield chunk(0, SIZE)
        while True:
            yield chunk(0, 1 << 18)

    call = channel.stream_stream(f"/{SERVICE}/Push")(
        parts(header(item=0)), timeout=60, metadata=authorization(TOKEN)
    )
    (answer,) = list(call)
    assert pb.VectorReply.FromString(answer).pushed.status == pb.PUSH_STATUS_ALREADY_APPLIED
    victim.before = replace(victim.before, repeated=victim.before.repeated + 1)
