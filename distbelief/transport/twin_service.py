"""The gRPC server's side of replication."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
import torch
from google.protobuf.message import Message

from distbelief.services import ShardService, TwinService
from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.buffers import BufferPool
from distbelief.transport.codec import Chunk, MalformedError, receive

Part = Message | Chunk

STATE_NBYTES = 16
"""A shard's state has so many bytes a parameter at most: four vectors."""

HEAD_NBYTES = 64 << 20
"""So many bytes its account may have beside them."""


class ServedShard(ShardService, TwinService, Protocol):
    """A shard that may be a twin, or have one."""


class TwinHandlers:
    """Handlers of a server; errors are left to whoever calls them.

    Args:
        shard: What is served.
        size: Its elements.
        buffers: Vectors of that size.
        count: Takes note of the elements that a call has brought.
    """

    def __init__(
        self,
        shard: ServedShard,
        size: int,
        buffers: BufferPool,
        count: Callable[[grpc.ServicerContext, int], None],
    ) -> None:
        self._shard = shard
        self._size = size
        self._buffers = buffers
        self._count = count

    def feed(self, request: pb.FeedTwinRequest, context: grpc.ServicerContext) -> pb.FeedTwinReply:
        """See :meth:`~distbelief.services.ShardService.feed_twin`."""
        version = self._shard.feed_twin(request.address)
        return pb.FeedTwinReply(version=records.version_to_wire(version))

    def release(
        self, request: pb.ReleaseTwinRequest, context: grpc.ServicerContext
    ) -> pb.ReleaseTwinReply:
        """See :meth:`~distbelief.services.ShardService.release_twin`."""
        self._shard.release_twin()
        return pb.ReleaseTwinReply()

    def promote(self, request: pb.PromoteRequest, context: grpc.ServicerContext) -> pb.StateReply:
        """See :meth:`~distbelief.services.ShardService.promote`."""
        return records.state_to_wire(self._shard.promote())

    def adopt(self, requests: Iterator[Part], context: grpc.ServicerContext) -> pb.AdoptReply:
        """See :meth:`~distbelief.services.TwinService.adopt`."""
        header = _header(requests, pb.AdoptRequest)
        limit = STATE_NBYTES * self._size + HEAD_NBYTES
        if header.nbytes % 4 or not 0 < header.nbytes <= limit:
            raise MalformedError(f"a state of {header.nbytes} bytes; there may be {limit}")
        state = bytearray(header.nbytes)
        receive(requests, torch.frombuffer(state, dtype=torch.float32))
        self._count(context, header.nbytes // 4)
        incarnation = self._shard.adopt(state, records.version_from_wire(header.source))
        return pb.AdoptReply(incarnation=incarnation)

    def mirror(self, requests: Iterator[Part], context: grpc.ServicerContext) -> pb.MirrorReply:
        """See :meth:`~distbelief.services.TwinService.mirror`."""
        header = _header(requests, pb.MirrorRequest)
        n_elements = header.push.n_elements
        if n_elements != self._size:
            raise MalformedError(f"{n_elements} elements for a shard of {self._size}")
        with self._buffers.lend() as gradient:
            receive(requests, gradient)
            self._count(context, n_elements)
            push, clock, staleness = records.mirror_from_wire(header, gradient)
            self._shard.mirror(push, clock=clock, staleness=staleness)
        return pb.MirrorReply()

    def set_aside(
        self, request: pb.SetAsideRequest, context: grpc.ServicerContext
    ) -> pb.SetAsideReply:
        """See :meth:`~distbelief.services.TwinService.mirror_set_aside`."""
        reason = records.reason_from_wire(request.reason)
        self._shard.mirror_set_aside(tuple(request.items), reason)
        return pb.SetAsideReply()


def _header(requests: Iterator[Part], kind: Any) -> Any:
    first = next(requests, None)
    if not isinstance(first, kind) or not first.HasField("header"):
        raise MalformedError("a stream begins with its header")
    return first.header
