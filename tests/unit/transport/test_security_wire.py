"""A shard's server on connections that no client of gRPC would make."""

import re
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.guard import authorization
from distbelief.transport.service import MAX_MESSAGE_NBYTES, SERVICE

TOKEN = "the run's token"
MAX_GROWTH_NBYTES = 64 << 20
METHODS = tuple(pb.DESCRIPTOR.services_by_name["ParameterServer"].methods_by_name)
Code = grpc.StatusCode


class Wire:
    """One connection, which sends what no client of gRPC would."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._answers = b""
        self._file = self._socket.makefile("rb")
        self._frames = self._read()
        self._room = {0: 65535}
        self._initial = 65535
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(4, 0, 0, b"")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self._file.close()
        self._socket.close()

    def begin(self, stream: int, method: str, **metadata: str) -> None:
        """The headers of a call."""
        pairs = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/{SERVICE}/{method}",
            ":authority": "x",
            "te": "trailers",
            "content-type": "application/grpc",
            "authorization": authorization(TOKEN)[0][1],
            **{key.replace("_", "-"): value for key, value in metadata.items()},
        }
        block = b"".join(
            b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode()
            for k, v in pairs.items()
        )
        self._frame(1, 4, stream, block)

    def send(self, stream: int, message: bytes) -> None:
        """A compressed message, as far as the other side lets it come."""
        body = b"\1" + struct.pack(">I", len(message)) + message
        self._room[stream] = self._initial
        for at in range(0, len(body), 16384):
            part = body[at : at + 16384]
            while min(self._room[0], self._room[stream]) < len(part):
                if b"grpc-status" in self._answers:
                    return
                next(self._frames)
            for of in (0, stream):
                self._room[of] -= len(part)
            self._frame(0, 0, stream, part)

    def statuses(self, n: int) -> list[int]:
        """The statuses of the first n calls that are answered."""
        while len(found := re.findall(rb"grpc-status[\1\2](\d+)", self._answers)) < n:
            next(self._frames)
        return [int(status) for status in found]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
        self._socket.sendall(head + struct.pack(">I", stream) + payload)

    def _read(self) -> Iterator[None]:
        while head := self._file.read(9):
            length, kind = int.from_bytes(head[:3], "big"), head[3]
            stream = int.from_bytes(head[5:], "big")
            payload = self._file.read(length)
            if kind == 1:
                self._answers += payload
            elif kind == 8 and stream in self._room:
                self._room[stream] += int.from_bytes(payload, "big")
            yield
        raise AssertionError("the connection has been closed")


def gzip_of_zeros(n_blocks: int) -> bytes:
    """Blocks of 16 MiB of zeros each, packed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + n_blocks * block


@pytest.mark.parametrize("method", ["Push", "State"])
def test_a_compressed_bomb_is_not_unpacked(victim: Any, memory: Any, method: str) -> None:
    bomb = gzip_of_zeros(128)
    assert len(bomb) < MAX_MESSAGE_NBYTES
    with memory, Wire(victim.endpoint) as wire:
        wire.begin(1, method, grpc_encoding="gzip", grpc_timeout="60S")
        wire.send(1, bomb)
        assert wire.statuses(1) == [Code.UNIMPLEMENTED.value[0]]
    assert memory.growth < MAX_GROWTH_NBYTES


def test_calls_that_send_nothing_end_at_their_deadline(victim: Any) -> None:
    late = Code.DEADLINE_EXCEEDED.value[0]
    with Wire(victim.endpoint) as wire:
        for i in range(victim.n_threads):
            wire.begin(2 * i + 1, METHODS[i % len(METHODS)], grpc_timeout="1S")
        assert wire.statuses(victim.n_threads) == [late] * victim.n_threads
        # The connection stands, and its client has ended none of them.
        assert victim.client.healthy()
