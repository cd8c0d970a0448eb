"""The client's side of replication, of a shard over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import Chunk, byte_chunks, chunks, encode
from distbelief.transport.guard import MAX_CALL_S
from distbelief.transport.service import SERVICE
from distbelief.types import Push, ShardState, Version

Call = Callable[..., Any]

FEED_S = 900.0
"""Deadline of handing a whole state over."""


class TwinCalls:
    """Calls of one channel; what gRPC raises is left to whoever calls them."""

    def __init__(
        self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...], timeout_s: float
    ) -> None:
        self._metadata = metadata
        self._timeout_s = timeout_s
        name, unary, streaming = f"/{SERVICE}/", channel.unary_unary, channel.stream_unary
        self._feed: Call = unary(f"{name}FeedTwin", encode, pb.FeedTwinReply.FromString)
        self._release: Call = unary(f"{name}ReleaseTwin", encode, pb.ReleaseTwinReply.FromString)
        self._promote: Call = unary(f"{name}Promote", encode, pb.StateReply.FromString)
        self._adopt: Call = streaming(f"{name}Adopt", encode, pb.AdoptReply.FromString)
        self._mirror: Call = streaming(f"{name}Mirror", encode, pb.MirrorReply.FromString)
        self._set_aside: Call = unary(f"{name}MirrorSetAside", encode, pb.SetAsideReply.FromString)

    def feed(self, address: str) -> Version:
        """See :meth:`~distbelief.services.ShardService.feed_twin`."""
        request = pb.FeedTwinRequest(address=address)
        timeout_s = min(FEED_S + self._timeout_s, MAX_CALL_S)
        reply = self._feed(request, timeout=timeout_s, metadata=self._metadata)
        return records.version_from_wire(reply.version)

    def release(self) -> None:
        """See :meth:`~distbelief.services.ShardService.release_twin`."""
        self._release(pb.ReleaseTwinRequest(), timeout=self._timeout_s, metadata=self._metadata)

    def promote(self) -> ShardState:
        """See :meth:`~distbelief.services.ShardService.promote`."""
        reply = self._promote(pb.PromoteRequest(), timeout=self._timeout_s, metadata=self._metadata)
        return records.state_from_wire(reply)

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        """See :meth:`~distbelief.services.TwinService.adopt`."""

        def parts() -> Iterator[Message | Chunk]:
            version = records.version_to_wire(source)
            yield pb.AdoptRequest(header=pb.AdoptHeader(source=version, nbytes=len(state)))
            yield from byte_chunks(memoryview(state))

        reply = self._adopt(parts(), timeout=FEED_S, metadata=self._metadata)
        return int(reply.incarnation)

    def mirror(self, push: Push, clock: int, staleness: int | None) -> None:
        """See :meth:`~distbelief.services.TwinService.mirror`."""

        def parts() -> Iterator[Message | Chunk]:
            yield pb.MirrorRequest(header=records.mirror_to_wire(push, clock, staleness))
            yield from chunks(push.gradient)

        self._mirror(parts(), timeout=self._timeout_s, metadata=self._metadata)

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :meth:`~distbelief.services.TwinService.mirror_set_aside`."""
        request = pb.SetAsideRequest(items=items, reason=reason)
        self._set_aside(request, timeout=self._timeout_s, metadata=self._metadata)
