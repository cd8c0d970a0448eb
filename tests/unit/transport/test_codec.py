"""The codec against the generated classes, in both directions, and against damage."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import (
    CHUNK_NBYTES,
    Chunk,
    MalformedError,
    chunks,
    decoder,
    encode,
    receive,
)

KINDS: list[type[Message]] = [pb.PushRequest, pb.LoadRequest, pb.VectorReply]
kinds = st.sampled_from(KINDS)
offsets = st.one_of(
    st.integers(0, 300), st.integers(0, 2**64 - 1), st.sampled_from([0, 127, 128, 2**32, 2**64 - 1])
)
elements = st.one_of(st.integers(0, 70), st.sampled_from([4095, 4096, 4097]))


def payload(n_elements: int, seed: int = 0) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (4 * n_elements,), dtype=torch.uint8, generator=generator)
    return raw.numpy().tobytes()


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def in_message(inner: bytes) -> bytes:
    return b"\x12" + varint(len(inner)) + inner


# Both directions


@settings(deadline=None, max_examples=120)
@given(kinds, offsets, elements)
def test_the_generated_classes_read_what_we_write(kind: Any, offset: int, n_elements: int) -> None:
    data = payload(n_elements)
    message = kind.FromString(encode(Chunk(offset, memoryview(data))))
    assert message.WhichOneof("part") == "chunk"
    assert (message.chunk.offset, message.chunk.data) == (offset, data)
    assert message.chunk == pb.Chunk(offset=offset, data=data)  # nothing that it does not know


@settings(deadline=None, max_examples=120)
@given(kinds, offsets, elements)
def test_we_read_what_the_generated_classes_write(kind: Any, offset: int, n_elements: int) -> None:
    data = payload(n_elements)
    message = kind(chunk=pb.Chunk(offset=offset, data=data)).SerializeToString()
    part = decoder(kind)(message)
    assert isinstance(part, Chunk)
    assert (part.offset, bytes(part.data)) == (offset, data)


@settings(deadline=None, max_examples=60)
@given(kinds, offsets, elements.filter(bool))
def test_our_bytes_are_theirs(kind: Any, offset: int, n_elements: int) -> None:
    data = payload(n_elements)
    theirs = kind(chunk=pb.Chunk(offset=offset, data=data)).SerializeToString()
    assert encode(Chunk(offset, memoryview(data))) == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_chunk(kind: Any) -> None:
    data = payload(CHUNK_NBYTES // 4)
    part = decoder(kind)(encode(Chunk(CHUNK_NBYTES // 4, memoryview(data))))
    assert isinstance(part, Chunk)
    assert (part.offset, bytes(part.data)) == (CHUNK_NBYTES // 4, data)


def test_a_chunk_shares_the_memory_of_its_message() -> None:
    message = encode(Chunk(5, memoryview(payload(10))))
    part = decoder(pb.VectorReply)(message)
    assert isinstance(part, Chunk)
    assert part.data.obj is message


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pb.PushRequest, pb.PushRequest(header=pb.PushHeader(item=3, rate=0.1, skipped=[1, 2]))),
        (pb.PushRequest, pb.PushRequest()),
        (pb.LoadRequest, pb.LoadRequest(header=pb.LoadHeader(n_elements=5))),
        (pb.VectorReply, pb.VectorReply(fetched=pb.FetchResult(n_elements=5))),
        (pb.VectorReply, pb.VectorReply(pushed=pb.PushResult(status=pb.PUSH_STATUS_APPLIED))),
    ],
)
def test_other_messages_go_through_the_generated_classes(kind: Any, message: Message) -> None:
    assert encode(message) == message.SerializeToString()
    assert decoder(kind)(encode(message)) == message


# Fields of a later version, and damage

unknown_fields = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.integers(0, 2**64 - 1)),
        st.tuples(st.just(1), st.binary(min_size=8, max_size=8)),
        st.tuples(st.just(2), st.binary(max_size=20)),
        st.tuples(st.just(5), st.binary(min_size=4, max_size=4)),
    ),
    max_size=4,
)


def field_bytes(number: int, wire_type: int, value: int | bytes) -> bytes:
    tag = varint(number << 3 | wire_type)
    if isinstance(value, int):
        return tag + varint(value)
    return tag + (varint(len(value)) if wire_type == 2 else b"") + value


@settings(deadline=None, max_examples=120)
@given(offsets, elements, unknown_fields, st.integers(3, 500), st.randoms())
def test_unknown_fields_of_a_chunk_are_passed_over(
    offset: int, n_elements: int, extra: list[tuple[int, Any]], number: int, random: Any
) -> None:
    data = payload(n_elements)
    fields = [field_bytes(number + i, *field) for i, field in enumerate(extra)]
    fields += [field_bytes(1, 0, offset), field_bytes(2, 2, data)]
    random.shuffle(fields)
    message = in_message(b"".join(fields))
    part = decoder(pb.PushRequest)(message)
    assert isinstance(part, Chunk)
    assert (part.offset, bytes(part.data)) == (offset, data)
    chunk = pb.PushRequest.FromString(message).chunk  # and the generated classes agree
    assert (chunk.offset, chunk.data) == (offset, data)


@settings(deadline=None, max_examples=120)
@given(kinds, offsets, elements, unknown_fields, st.integers(10, 500))
def test_unknown_fields_beside_a_chunk_are_passed_over(
    kind: Any, offset: int, n_elements: int, extra: list[tuple[int, Any]], number: int
) -> None:
    data = payload(n_elements)
    message = encode(Chunk(offset, memoryview(data)))
    message += b"".join(field_bytes(number + i, *field) for i, field in enumerate(extra))
    part = decoder(kind)(message)
    assert isinstance(part, Chunk)
    assert (part.offset, bytes(part.data)) == (offset, data)
    chunk = kind.FromString(message).chunk
    assert (chunk.offset, chunk.data) == (offset, data)


def test_of_a_field_that_comes_twice_the_last_counts() -> None:
    inner = field_bytes(1, 0, 5) + field_bytes(2, 2, b"abcd") + field_bytes(1, 0, 9)
    message = in_message(inner + field_bytes(2, 2, b"efgh"))
    part = decoder(pb.LoadRequest)(message)
    assert isinstance(part, Chunk)
    assert (part.offset, bytes(part.data)) == (9, b"efgh")
    theirs = pb.LoadRequest.FromString(message).chunk
    assert (theirs.offset, theirs.data) == (9, b"efgh")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), kinds)
@example(b"", pb.PushRequest)
@example(b"\xff" * 20, pb.PushRequest)
def test_bytes_that_begin_like_a_chunk_are_a_chunk_or_malformed(rest: bytes, kind: Any) -> None:
    for message in (b"\x12" + rest, in_message(rest)):
        try:
            part = decoder(kind)(message)
        except MalformedError:
            continue
        assert isinstance(part, Chunk)
        assert len(part.data) % 4 == 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), kinds)
def test_any_bytes_are_a_part_or_malformed(message: bytes, kind: Any) -> None:
    try:
        part = decoder(kind)(message)
    except (MalformedError, DecodeError):
        return
    assert isinstance(part, Chunk | kind)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_a_message_cut_short_is_malformed(
    offset: int, n_elements: int, data: st.DataObject
) -> None:
    whole = encode(Chunk(offset, memoryview(payload(n_elements))))
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(MalformedError):
        decoder(pb.PushRequest)(whole[:cut])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\x12\x05", "a field reaches beyond its message"),
        (b"\x12\x00\x08", "a number without an end"),
        (in_message(b"\x19" + bytes(7)), "a field reaches beyond its message"),
        (in_message(b"\x1d" + bytes(3)), "a field reaches beyond its message"),
        (in_message(b"") + b"\x19" + bytes(7), "a field reaches beyond its message"),
        (in_message(b"") + b"\x1d", "a field reaches beyond its message"),
        (in_message(b"") + b"\x1a\x03ab", "a field reaches beyond its message"),
        (in_message(b"") + b"\x1b", "wire type 3"),
        (in_message(b"\x12\x05abcd"), "a field reaches beyond its message"),
        (in_message(b"\x12\x03abc"), "3 bytes are no float32 elements"),
        (in_message(b"\x08"), "a number without an end"),
        (in_message(b"\x08" + b"\xff" * 11), "a number without an end"),
        (in_message(b"\x0b"), "wire type 3"),
        (in_message(b"\x0f"), "wire type 7"),
        (b"\x12", "a number without an end"),
    ],
)
def test_malformed(message: bytes, text: str) -> None:
    with pytest.raises(MalformedError, match=f"^{text}$"):
        decoder(pb.PushRequest)(message)


# Vectors


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (0, []),
        (1, [1]),
        (CHUNK_NBYTES // 4, [CHUNK_NBYTES // 4]),
        (CHUNK_NBYTES // 4 + 1, [CHUNK_NBYTES // 4, 1]),
        (CHUNK_NBYTES // 2 + 5, [CHUNK_NBYTES // 4, CHUNK_NBYTES // 4, 5]),
    ],
)
def test_chunks(n: int, sizes: list[int]) -> None:
    vector = torch.arange(n, dtype=torch.float32)
    parts = list(chunks(vector))
    assert [len(part.data) // 4 for part in parts] == sizes
    assert [part.offset for part in parts] == [i * CHUNK_NBYTES // 4 for i in range(len(sizes))]
    assert b"".join(part.data for part in parts) == vector.numpy().tobytes()


def test_chunks_share_the_vectors_memory() -> None:
    vector = torch.zeros(4)
    (part,) = chunks(vector)
    vector[1] = 1.0
    assert bytes(part.data) == torch.tensor([0.0, 1.0, 0.0, 0.0]).numpy().tobytes()


def test_float32_is_little_endian_on_the_wire() -> None:
    (part,) = chunks(torch.tensor([1.0, -2.0]))
    assert bytes(part.data) == bytes.fromhex("0000803f000000c0")


def sent(*parts: tuple[int, int]) -> Iterator[Chunk]:
    """Chunks of (offset, elements), whose values are their positions."""
    for offset, n in parts:
        values = torch.arange(offset, offset + n, dtype=torch.float32)
        yield Chunk(offset, memoryview(values.numpy().tobytes()))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_receive_puts_parts_together_whatever_their_sizes(sizes: list[int]) -> None:
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    out = torch.full((sum(sizes),), -1.0)
    receive(sent(*zip(offsets, sizes, strict=True)), out)
    assert torch.equal(out, torch.arange(sum(sizes), dtype=torch.float32))


def test_receive_keeps_every_bit() -> None:
    odd = [math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4028234e38]
    vector = torch.tensor([*odd, 0.1])
    vector = torch.cat([vector, torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)])
    out = torch.zeros(8)
    receive((decoder(pb.VectorReply)(encode(part)) for part in chunks(vector)), out)
    assert torch.equal(out.view(torch.int32), vector.view(torch.int32))


def test_receive_takes_no_more_than_it_needs() -> None:
    parts = sent((0, 2), (2, 2), (4, 2))
    receive(parts, torch.empty(4))
    assert next(parts).offset == 4


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([(0, 3)], "3 of 4 elements came"),
        ([], "0 of 4 elements came"),
        ([(0, 5)], "5 elements at 0, where 0 of 4 had come"),
        ([(0, 2), (2, 3)], "3 elements at 2, where 2 of 4 had come"),
        ([(0, 2), (3, 1)], "1 elements at 3, where 2 of 4 had come"),
        ([(1, 3)], "3 elements at 1, where 0 of 4 had come"),
        ([(0, 2), (0, 2)], "2 elements at 0, where 2 of 4 had come"),
        ([(0, 2), (2, 0)], "0 elements at 2, where 2 of 4 had come"),
        ([(2**63, 1)], f"1 elements at {2**63}, where 0 of 4 had come"),
    ],
)
def test_receive_refuses_gaps_and_other_sizes(parts: list[tuple[int, int]], text: str) -> None:
    made = [Chunk(offset, memoryview(torch.zeros(n).numpy().tobytes())) for offset, n in parts]
    with pytest.raises(MalformedError, match=f"^{text}$"):
        receive(made, torch.empty(4))


def test_receive_refuses_what_is_no_chunk() -> None:
    with pytest.raises(MalformedError, match="a chunk was expected"):
        receive([pb.PushRequest(header=pb.PushHeader())], torch.empty(4))
