"""The gRPC server in front of a shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc
import torch
from google.protobuf.message import DecodeError, Message

from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.transport import records
from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.buffers import BufferPool
from distbelief.transport.codec import Chunk, MalformedError, chunks, decoder, encode, receive
from distbelief.transport.guard import Behaviour, Guard
from distbelief.transport.security import UNCOMPRESSED, Tls, bind
from distbelief.transport.traffic import SENDER_KEY, Traffic
from distbelief.transport.twin_service import ServedShard, TwinHandlers

SERVICE = "distbelief.v1.ParameterServer"
MAX_MESSAGE_NBYTES = 4 << 20
MAX_ELEMENTS = 1 << 40
REASON_KEY = "distbelief-reason"
STOP_GRACE_S = 2.0
FREE_THREADS = 4
"""For calls that wait for nobody: they are answered though all others wait for the shard."""

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Part = Message | Chunk


class ShardServer:
    """Serves one shard on ``host``; ``port`` 0 takes a free one. A context manager.

    ``n_clients`` may each have a push and a fetch under way: of a replica each of its stages, and
    each range that it pushes for itself, counts, since the push of a part waits for the others.
    With ``tls`` both sides show certificates, and nobody else can read along.

    ``fence`` raises ProcessLostError once the shard has been given up: it is asked before a call's
    work and again before its answer, though not for the shard's account. Whoever calls is told that
    there was no answer.
    """

    def __init__(
        self,
        shard: ServedShard,
        *,
        size: int,
        token: str,
        n_clients: int,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls | None = None,
        fence: Callable[[], None] | None = None,
    ) -> None:
        self._shard = shard
        self._size = size
        self._begin: int | None = None
        self._buffers = BufferPool(size)
        self._traffic = Traffic()
        self._fence = fence or _no_fence
        self._twins = TwinHandlers(shard, size, self._buffers, self._count)
        # Handlers wait for the shard's writer: each client may have a push and a fetch under way,
        # and those who keep the run have calls of their own.
        n_waiting = 2 * n_clients + 16
        self._waiting = threading.BoundedSemaphore(n_waiting)
        n_threads = n_waiting + FREE_THREADS
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="shard-rpc")
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                ("grpc.max_concurrent_streams", 2 * n_threads),  # of one connection
                UNCOMPRESSED,
            ],
            maximum_concurrent_rpcs=2 * n_threads,
        )
        guard = Guard(self._handlers(), token, _errors_as_status)
        self._server.add_generic_rpc_handlers([guard])
        bound = bind(self._server, f"{host}:{port}", tls)
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
        one, many, twins = self._answering, self._streaming, self._twins
        told, free = partial(one, fenced=False), partial(one, fenced=False, waits=False)
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Fetch": fetch_kind(many(self._fetch), pb.FetchRequest.FromString, encode),
                "Push": streaming(many(self._push), decoder(pb.PushRequest), encode),
                "Load": load_kind(one(self._load), decoder(pb.LoadRequest), encode),
                "SetAside": unary(one(self._set_aside), pb.SetAsideRequest.FromString, encode),
                "State": unary(told(self._state), pb.StateRequest.FromString, encode),
                "Pause": unary(one(self._pause), pb.PauseRequest.FromString, encode),
                "Save": unary(one(self._save), pb.SaveRequest.FromString, encode),
                "Health": unary(told(self._health), pb.HealthRequest.FromString, encode),
                "FeedTwin": unary(one(twins.feed), pb.FeedTwinRequest.FromString, encode),
                "ReleaseTwin": unary(free(twins.release), pb.ReleaseTwinRequest.FromString, encode),
                "Promote": unary(one(twins.promote), pb.PromoteRequest.FromString, encode),
                "Adopt": load_kind(one(twins.adopt), decoder(pb.AdoptRequest), encode),
                "Mirror": load_kind(one(twins.mirror), decoder(pb.MirrorRequest), encode),
                "MirrorSetAside": unary(
                    one(twins.set_aside), pb.SetAsideRequest.FromString, encode
                ),
            },
        )

    def _answering(
        self, behaviour: Behaviour, *, fenced: bool = True, waits: bool = True
    ) -> Behaviour:
        """A handler that gives one answer."""
        fence = self._fence if fenced else _no_fence

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._place(context) if waits else nullcontext(), _errors_as_status(context):
                fence()
                reply = behaviour(request, context)
                fence()
                return reply

        return call

    def _streaming(self, behaviour: Behaviour) -> Behaviour:
        """A handler that answers with a stream."""

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._place(context), _errors_as_status(context):
                self._fence()
                yield from behaviour(request, context)

        return call

    @contextmanager
    def _place(self, context: grpc.ServicerContext) -> Iterator[None]:
        """One of the threads that may wait."""
        if not self._waiting.acquire(blocking=False):
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls wait for it")
        try:
            yield
        finally:
            self._waiting.release()

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
                self._fence()
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
            self._shard.set_aside(tuple(request.items), records.reason_from_wire(request.reason))
        return pb.SetAsideReply()

    def _state(self, request: pb.StateRequest, context: grpc.ServicerContext) -> pb.StateReply:
        with _errors_as_status(context):
            state = self._shard.state()
        return records.state_to_wire(replace(state, traffic=self._traffic.by_sender()))

    def _pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.StateReply:
        with _errors_as_status(context):
            state = self._shard.pause(records.seconds_from_wire(request.seconds))
        return records.state_to_wire(state)

    def _save(self, request: pb.SaveRequest, context: grpc.ServicerContext) -> pb.SaveReply:
        with _errors_as_status(context):
            file = self._shard.save(*records.save_from_wire(request))
        return records.file_to_wire(file)

    def _health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        with _errors_as_status(context):
            state = self._shard.state()
        serving = state.loaded and not state.follows
        return pb.HealthReply(serving=serving, shard=state.shard, incarnation=state.incarnation)


def _no_fence() -> None:
    """Nobody gives the shard up."""


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
