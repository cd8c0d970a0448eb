"""A shard over gRPC, behind the same seam as the shard itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc
import torch
from google.protobuf.message import DecodeError, Message

from distbelief.errors import ShardRefusedError, TransportError
from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import Chunk, MalformedError, chunks, decoder, encode, receive
from distbelief.transport.guard import authorization
from distbelief.transport.security import Tls, open_channel
from distbelief.transport.service import MAX_MESSAGE_NBYTES, REASON_KEY, SERVICE
from distbelief.transport.traffic import SENDER_KEY, sender_name
from distbelief.transport.twin_client import TwinCalls
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

Call = Callable[..., Any]

SAVE_S = 900.0
"""Deadline of writing a shard's state, to whatever storage."""

FINAL_CODES = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Answers that another try cannot change."""


class ShardClient:
    """A :class:`~distbelief.services.ShardService` and a ``TwinService`` over one gRPC channel.

    Every call has ``timeout_s`` as its deadline. Thread-safe; close it, or use it as a context
    manager. With a ``sender`` the shard's account has this client's traffic under that name; with
    ``tls`` both sides show certificates.
    """

    def __init__(
        self,
        shard: int,
        endpoint: str,
        token: str,
        *,
        timeout_s: float = 60.0,
        sender: str = "",
        tls: Tls | None = None,
    ) -> None:
        self.shard = shard
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._closed = False
        self._metadata = authorization(token)
        if sender:
            self._metadata += ((SENDER_KEY, sender_name(sender)),)
        self._channel = open_channel(
            endpoint,
            tls,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                ("grpc.enable_http_proxy", 0),
                # A shard that restarts is tried again soon, not after minutes.
                ("grpc.max_reconnect_backoff_ms", 1000),
                # Channels to one address otherwise share one connection, and so one core's worth.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        channel, name = self._channel, f"/{SERVICE}/"
        self._fetch: Call = channel.unary_stream(f"{name}Fetch", encode, decoder(pb.VectorReply))
        self._push: Call = channel.stream_stream(f"{name}Push", encode, decoder(pb.VectorReply))
        self._load: Call = channel.stream_unary(f"{name}Load", encode, pb.LoadReply.FromString)
        self._set_aside: Call = channel.unary_unary(
            f"{name}SetAside", encode, pb.SetAsideReply.FromString
        )
        self._state: Call = channel.unary_unary(f"{name}State", encode, pb.StateReply.FromString)
        self._pause: Call = channel.unary_unary(f"{name}Pause", encode, pb.StateReply.FromString)
        self._save: Call = channel.unary_unary(f"{name}Save", encode, pb.SaveReply.FromString)
        self._twins = TwinCalls(channel, self._metadata, timeout_s)
        self._health: Call = channel.unary_unary(f"{name}Health", encode, pb.HealthReply.FromString)

    def __enter__(self) -> ShardClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the channel; calls under way fail."""
        self._closed = True
        self._channel.close()

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.services.ParameterService`."""
        with self._errors():
            request = records.fetch_to_wire(weights, unless, begin, out.numel())
            replies = self._fetch(request, timeout=self._timeout_s, metadata=self._metadata)
            fetched = _first(replies, "fetched").fetched
            _receive_vector(replies, fetched.n_elements, out)
            return records.version_from_wire(fetched.version)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.services.ParameterService`."""

        def parts() -> Iterator[Message | Chunk]:
            header = records.push_to_wire(push, fetch=fetch_into is not None)
            yield pb.PushRequest(header=header)
            yield from chunks(push.gradient)

        with self._errors():
            replies = self._push(parts(), timeout=self._timeout_s, metadata=self._metadata)
            result = _first(replies, "pushed").pushed
            _receive_vector(replies, result.n_elements, fetch_into)
            return records.reply_from_wire(result)

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.services.ShardService`."""

        def parts() -> Iterator[Message | Chunk]:
            yield pb.LoadRequest(header=pb.LoadHeader(n_elements=values.numel()))
            yield from chunks(values)

        with self._errors():
            self._load(parts(), timeout=self._timeout_s, metadata=self._metadata)

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        with self._errors():
            self._set_aside(
                pb.SetAsideRequest(items=items, reason=reason),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )

    def state(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        with self._errors():
            return records.state_from_wire(
                self._state(pb.StateRequest(), timeout=self._timeout_s, metadata=self._metadata)
            )

    def pause(self, seconds: float) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        with self._errors():
            return records.state_from_wire(
                self._pause(
                    pb.PauseRequest(seconds=seconds),
                    timeout=self._timeout_s,
                    metadata=self._metadata,
                )
            )

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """See :class:`~distbelief.services.ShardService`; writing may take long."""
        with self._errors():
            request = records.save_to_wire(snapshot, items, seconds)
            timeout_s = SAVE_S + seconds
            return records.file_from_wire(
                self._save(request, timeout=timeout_s, metadata=self._metadata)
            )

    def feed_twin(self, address: str) -> Version:
        """See :class:`~distbelief.services.ShardService`; handing over may take long."""
        with self._errors():
            return self._twins.feed(address)

    def release_twin(self) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        with self._errors():
            self._twins.release()

    def promote(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""
        with self._errors():
            return self._twins.promote()

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        """See :class:`~distbelief.services.TwinService`; may take long."""
        with self._errors():
            return self._twins.adopt(state, source)

    def mirror(self, push: Push, *, clock: int, staleness: int | None) -> None:
        """See :class:`~distbelief.services.TwinService`."""
        with self._errors():
            self._twins.mirror(push, clock, staleness)

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.TwinService`."""
        with self._errors():
            self._twins.set_aside(items, reason)

    def healthy(self) -> bool:
        """Whether the shard answers and has its initial values."""
        with self._errors():
            reply: pb.HealthReply = self._health(
                pb.HealthRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
            return reply.serving

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, detail = error.code(), error.details() or ""
            if code in FINAL_CODES:
                trailing: Any = error.trailing_metadata() or ()
                reason = dict(trailing).get(REASON_KEY, code.name.lower())
                raise ShardRefusedError(self.shard, str(reason), detail) from error
            raise TransportError(self.shard, code.name, f"{self.endpoint}: {detail}") from error
        except (MalformedError, DecodeError) as error:
            raise TransportError(self.shard, "MALFORMED", str(error)) from error
        except ValueError as error:  # gRPC's word for a channel that was closed in the meantime
            if not self._closed:
                raise
            raise TransportError(self.shard, "CLOSED", "it has been given up") from error


def _first(replies: Iterator[Any], field: str) -> pb.VectorReply:
    reply = next(replies, None)
    if not isinstance(reply, pb.VectorReply) or not reply.HasField(field):
        raise MalformedError(f"the answer does not begin with its result ({field})")
    return reply


def _receive_vector(replies: Iterator[Any], n_elements: int, out: torch.Tensor | None) -> None:
    """Reads the rest of an answer, the chunks that it announced included, so that its call ends."""
    if n_elements:
        if out is None or n_elements != out.numel():
            raise MalformedError(f"{n_elements} elements that were not asked for")
        receive(replies, out)
    if next(replies, None) is not None:
        raise MalformedError("more came than was announced")
