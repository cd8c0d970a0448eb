"""The gRPC server in front of a shard."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc
import torch
from google.protobuf.message import DecodeError, Message

from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import Chunk, MalformedError, chunks, decoder, encode, receive
from distbelief.transport.traffic import SENDER_KEY, Traffic
from distbelief.types import ShardService

SERVICE = "distbelief.v1.ParameterServer"
MAX_MESSAGE_NBYTES = 4 << 20
MAX_ELEMENTS = 1 << 40
REASON_KEY = "distbelief-reason"
STOP_GRACE_S = 2.0

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Part = Message | Chunk
Handler = Callable[[Any, grpc.ServicerContext], Any]


def authorization(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that every call must carry."""
    return (("authorization", f"Bearer {token}"),)


class BufferPool:
    """Float32 vectors of one size, kept after use so that their pages stay mapped. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[torch.Tensor] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[torch.Tensor]:
        """A vector of undefined contents, for the time of the block."""
        with self._lock:
            buffer = self._free.pop() if self._free else None
        if buffer is None:
            buffer = torch.empty(self._size)
        try:
            yield buffer
        finally:
            with self._lock:
                self._free.append(buffer)


class ShardServer:
    """Serves one shard on ``host``; ``port`` 0 takes a free one. A context manager.

    ``n_clients`` may each have a push and a fetch under way: of a replica each of its stages, and
    each range that it pushes for itself, counts, since the push of a part waits for the others.
    """

    def __init__(
        self,
        shard: ShardService,
        *,
        size: int,
        token: str,
        n_clients: int,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._shard = shard
        self._size = size
        self._authorization = authorization(token)[0][1]
        self._begin: int | None = None
        self._buffers = BufferPool(size)
        self._traffic = Traffic()
        # Handlers wait for the shard's writer: each client may have a push and a fetch under way.
        self._pool = ThreadPoolExecutor(2 * n_clients + 8, thread_name_prefix="shard-rpc")
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
            ],
        )
        self._server.add_generic_rpc_handlers([self._handlers()])
        bound = self._server.add_insecure_port(f"{host}:{port}")
        self.endpoint = f"{host}:{bound}"

    def __enter__(self) -> ShardServer:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(STOP_GRACE_S).wait()
        self._pool.shutdown()

    def _handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        unary, streaming = (
            grpc.unary_unary_rpc_method_handler,
            grpc.stream_stream_rpc_method_handler,
        )
        fetch_kind, load_kind = (
            grpc.unary_stream_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
        )
        guard = self._guarded
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Fetch": fetch_kind(guard(self._fetch), pb.FetchRequest.FromString, encode),
                "Push": streaming(guard(self._push), decoder(pb.PushRequest), encode),
                "Load": load_kind(guard(self._load), decoder(pb.LoadRequest), encode),
                "SetAside": unary(guard(self._set_aside), pb.SetAsideRequest.FromString, encode),
                "State": unary(guard(self._state), pb.StateRequest.FromString, encode),
                "Pause": unary(guard(self._pause), pb.PauseRequest.FromString, encode),
                "Save": unary(guard(self._save), pb.SaveRequest.FromString, encode),
                "Health": unary(guard(self._health), pb.HealthRequest.FromString, encode),
            },
        )

    def _guarded(self, behaviour: Handler) -> Handler:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            given = dict(context.invocation_metadata()).get("authorization", "")
            if not hmac.compare_digest(str(given).encode(), self._authorization.encode()):
                context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "the run's token is missing or wrong"
                )
            return behaviour(request, context)

        return call

    def _fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> Iterator[Part]:
        with self._buffers.lend() as buffer, _errors_as_status(context):
            if request.n_elements > self._size:
                raise MalformedError(f"{request.n_elements} elements of a shard of {self._size}")
            out = buffer[: request.n_elements]
            weights, known = records.fetch_from_wire(request)
            version = self._shard.fetch(out, begin=request.begin, weights=weights, unless=known)
            n = 0 if version == known else out.numel()
            wire_version = records.version_to_wire(version)
            yield pb.VectorReply(fetched=pb.FetchResult(version=wire_version, n_elements=n))
            if n:
                yield from chunks(out)
                self._count(context, n)

    def _push(self, requests: Iterator[Part], context: grpc.ServicerContext) -> Iterator[Part]:
        with _errors_as_status(context):
            first = next(requests, None)
            if not isinstance(first, pb.PushRequest) or not first.HasField("header"):
                raise MalformedError("a push begins with its header")
            header = first.header
            n_elements = header.n_elements
            if not self._holds(header.begin, n_elements):  # refused before anything is received
                # As long as was said, without the memory.
                announced = torch.empty(1).expand(min(n_elements, MAX_ELEMENTS))
                reply = self._shard.push(records.push_from_wire(header, announced))
                yield pb.VectorReply(pushed=records.reply_to_wire(reply, 0))
                return
            with self._buffers.lend() as received, self._buffers.lend() as newest:
                gradient, out = received[:n_elements], newest[:n_elements]
                receive(requests, gradient)
                self._count(context, n_elements)
                push = records.push_from_wire(header, gradient)
                reply = self._shard.push(push, fetch_into=out if header.fetch else None)
                n = n_elements if reply.fetched else 0
                yield pb.VectorReply(pushed=records.reply_to_wire(reply, n))
                if n:
                    yield from chunks(out)
                    self._count(context, n)

    def _holds(self, begin: int, n_elements: int) -> bool:
        """Whether the shard has that range."""
        if not 0 < n_elements <= self._size:
            return False
        if self._begin is None:
            self._begin = self._shard.state().begin
        return self._begin <= begin and begin + n_elements <= self._begin + self._size

    def _count(self, context: grpc.ServicerContext, n_elements: int) -> None:
        sender = dict(context.invocation_metadata()).get(SENDER_KEY, "")
        self._traffic.add(str(sender), 4 * n_elements)

    def _load(self, requests: Iterator[Part], context: grpc.ServicerContext) -> pb.LoadReply:
        with _errors_as_status(context), self._buffers.lend() as values:
            first = next(requests, None)
            if not isinstance(first, pb.LoadRequest) or not first.HasField("header"):
                raise MalformedError("a load begins with its header")
            if first.header.n_elements != self._size:
                raise MalformedError(
                    f"{first.header.n_elements} elements for a shard of {self._size}"
                )
            receive(requests, values)
            self._shard.load(values)
        return pb.LoadReply()

    def _set_aside(
        self, request: pb.SetAsideRequest, context: grpc.ServicerContext
    ) -> pb.SetAsideReply:
        with _errors_as_status(context):
            self._shard.set_aside(tuple(request.items), request.reason)
        return pb.SetAsideReply()

    def _state(self, request: pb.StateRequest, context: grpc.ServicerContext) -> pb.StateReply:
        with _errors_as_status(context):
            state = self._shard.state()
        return records.state_to_wire(replace(state, traffic=self._traffic.by_sender()))

    def _pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.StateReply:
        with _errors_as_status(context):
            state = self._shard.pause(request.seconds)
        return records.state_to_wire(state)

    def _save(self, request: pb.SaveRequest, context: grpc.ServicerContext) -> pb.SaveReply:
        with _errors_as_status(context):
            file = self._shard.save(*records.save_from_wire(request))
        return records.file_to_wire(file)

    def _health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        with _errors_as_status(context):
            state = self._shard.state()
        return pb.HealthReply(
            serving=state.loaded, shard=state.shard, incarnation=state.incarnation
        )


@contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns what a handler raises into the gRPC status that says it."""
    try:
        yield
    except ShardRefusedError as error:
        context.set_trailing_metadata(((REASON_KEY, error.reason),))
        _abort(context, grpc.StatusCode.FAILED_PRECONDITION, error.detail)
    except (MalformedError, DecodeError) as error:
        context.set_trailing_metadata(((REASON_KEY, "malformed"),))
        _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except TransportError as error:
        _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error.detail)
    except ProcessLostError as error:
        _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, detail: str) -> NoReturn:
    context.abort(code, detail)
    raise AssertionError("abort returned")
