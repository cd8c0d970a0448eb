"""The messages' bytes, with the large ``bytes`` field written and read without protobuf's copies.

``PushRequest``, ``MirrorRequest``, ``LoadRequest``, ``AdoptRequest`` and ``VectorReply`` have in
common that their field 2 is a Chunk. A chunk is put on the wire with one copy, into the message,
and taken from it with one copy, into the destination. What is not a chunk goes through the
generated classes. On the wire it is plain protobuf; the tests hold this module against the
generated classes in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from google.protobuf.message import Message

CHUNK_NBYTES = 1 << 20
MAX_HEADER_NBYTES = 256 << 10
"""Of a message that is no chunk: decoded, its numbers take several times as much memory."""

_CHUNK_FIELD = 2
_CHUNK_TAG = 0x12  # that field, length-delimited, in all of them
_OFFSET_TAG = 0x08  # Chunk.offset: field 1, varint
_DATA_TAG = 0x12  # Chunk.data: field 2, length-delimited
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_NBYTES = {1: 8, 5: 4}

M = TypeVar("M", bound=Message)


class MalformedError(ValueError):
    """Bytes that are not what the protocol says, or a vector that does not fit its announcement."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a vector: float32 elements from ``offset`` on, little-endian in ``data``."""

    offset: int
    data: memoryview


def chunks(vector: torch.Tensor) -> Iterator[Chunk]:
    """A contiguous float32 vector in chunks that share its memory."""
    return byte_chunks(vector.numpy().view(np.uint8).data)


def byte_chunks(data: memoryview) -> Iterator[Chunk]:
    """Bytes, a multiple of 4 of them, as if they were a vector's; the chunks share their memory."""
    for begin in range(0, len(data), CHUNK_NBYTES):
        yield Chunk(begin // 4, data[begin : begin + CHUNK_NBYTES])


def receive(parts: Iterable[Message | Chunk], out: torch.Tensor) -> None:
    """Copies chunks into ``out`` until it is full.

    Raises:
        MalformedError: something else came, or a gap, or too much, or too little.
    """
    target = out.numpy()
    filled = 0
    for part in parts:
        if not isinstance(part, Chunk):
            raise MalformedError("a chunk was expected")
        values = np.frombuffer(part.data, dtype="<f4")
        if part.offset != filled or filled + len(values) > len(target) or not len(values):
            raise MalformedError(
                f"{len(values)} elements at {part.offset}, where {filled} of {len(target)} had come"
            )
        target[filled : filled + len(values)] = values
        filled += len(values)
        if filled == len(target):
            return
    if filled < len(target):
        raise MalformedError(f"{filled} of {len(target)} elements came")


def encode(part: Message | Chunk) -> bytes:
    """The bytes of a message, or of any that has chunks with this one in it."""
    if not isinstance(part, Chunk):
        return part.SerializeToString()
    inner = bytearray()
    if part.offset:
        inner.append(_OFFSET_TAG)
        _write_varint(inner, part.offset)
    inner.append(_DATA_TAG)
    _write_varint(inner, len(part.data))
    head = bytearray((_CHUNK_TAG,))
    _write_varint(head, len(inner) + len(part.data))
    return b"".join((head, inner, part.data))


def decoder(kind: type[M]) -> Callable[[bytes], M | Chunk]:
    """A function from bytes to a chunk that shares their memory, or to a message of ``kind``."""

    def decode(message: bytes) -> M | Chunk:
        if message and message[0] == _CHUNK_TAG:
            return _read_chunk(memoryview(message))
        if len(message) > MAX_HEADER_NBYTES:
            raise MalformedError(f"a header of {len(message)} bytes")
        return kind.FromString(message)

    return decode


def _read_chunk(message: memoryview) -> Chunk:
    chunk = message[:0]
    for number, value in _fields(message):
        if number == _CHUNK_FIELD and isinstance(value, memoryview):
            chunk = value
    offset, data = 0, message[:0]
    for number, value in _fields(chunk):
        if number == 1 and isinstance(value, int):
            offset = value
        elif number == 2 and isinstance(value, memoryview):
            data = value
    if len(data) % 4:
        raise MalformedError(f"{len(data)} bytes are no float32 elements")
    return Chunk(offset, data)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message, those of a later version included: numbers and values."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, at = _read_varint(message, at)
        elif wire_type in _FIXED_NBYTES:
            size = _FIXED_NBYTES[wire_type]
        else:
            raise MalformedError(f"wire type {wire_type}")
        if at + size > len(message):
            raise MalformedError("a field reaches beyond its message")
        yield number, message[at : at + size]
        at += size


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise MalformedError("a number without an end")
