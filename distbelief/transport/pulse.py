"""Signs of life: every process of a run sends them, and its supervisor hears who falls silent."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType

import grpc
from google.protobuf.message import DecodeError

from distbelief.coordinator.heartbeats import Beats, Silent
from distbelief.transport._generated import supervisor_pb2 as pb
from distbelief.transport.codec import MalformedError
from distbelief.transport.guard import Guard, authorization
from distbelief.transport.security import UNCOMPRESSED, Tls, bind, open_channel

SERVICE = "distbelief.v1.Supervisor"
MAX_MESSAGE_NBYTES = 4 << 10
EVERY_S = 0.5

AGAIN_S = (0.2, 1.0)
"""A process whose connection broke waits between these before it opens another one."""

LEAVE_S = 2.0
"""So long a process that ends tries to say so."""


class PulseServer:
    """Hears a run's processes. A context manager; ``endpoint`` is its address. Thread-safe.

    Args:
        token: The run's token, which every process must show.
        host: Where to listen; ``port`` 0 takes a free one.
        n_processes: How many processes there are at a time; each takes a thread.
        tls: Both sides show certificates, and nobody else can read along.
        silent_s: See :class:`~distbelief.coordinator.heartbeats.Beats`, as of ``closed_s``.
    """

    def __init__(
        self,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        n_processes: int,
        tls: Tls | None = None,
        silent_s: float = 4.0,
        closed_s: float = 1.5,
    ) -> None:
        self._beats = Beats(silent_s=silent_s, closed_s=closed_s)
        self._open: dict[str, list[grpc.ServicerContext]] = {}
        self._lock = threading.Lock()
        # One that is replaced, or has lost its connection, holds its thread for a while.
        n_threads = 2 * n_processes + 8
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="pulse-rpc")
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                # Pings of a client, however many, are no reason to end its connection.
                ("grpc.http2.min_ping_interval_without_data_ms", 0),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                UNCOMPRESSED,
            ],
            maximum_concurrent_rpcs=2 * n_threads,
        )
        behaviour = grpc.stream_unary_rpc_method_handler(
            self._beat, pb.Pulse.FromString, pb.PulseReply.SerializeToString
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"Beat": behaviour})
        guard = Guard(handlers, token, _errors_as_status, max_call_s=None)
        self._server.add_generic_rpc_handlers([guard])
        bound = bind(self._server, f"{host}:{port}", tls)
        self.endpoint = f"{host}:{bound}"

    def __enter__(self) -> PulseServer:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()  # streams that are open are cut
        self._pool.shutdown()

    def late(self) -> list[Silent]:
        """The processes to be given up; to be called several times a second.

        Each is told again until it is forgotten. Never blocks.
        """
        with self._lock:
            return self._beats.late(time.monotonic())

    def forget(self, name: str) -> None:
        """Whatever else comes of that process is ignored."""
        with self._lock:
            self._beats.forget(name)
            contexts = self._open.pop(name, [])
        for context in contexts:  # of a host that is gone a stream would hold its thread for hours
            context.cancel()  # type: ignore[no-untyped-call]

    def _beat(self, pulses: Iterator[pb.Pulse], context: grpc.ServicerContext) -> pb.PulseReply:
        name: str | None = None
        try:
            # An RpcError is how the stream tells that its other end is gone.
            with suppress(grpc.RpcError), _errors_as_status(context):
                for pulse in pulses:
                    with self._lock:
                        if pulse.leaving:
                            self._beats.forget(pulse.name)
                        elif name is None:
                            name = pulse.name
                            self._beats.opened(name, time.monotonic())
                            self._open.setdefault(name, []).append(context)
                        else:
                            self._beats.note(name, time.monotonic())
        finally:
            if name is not None:
                with self._lock:
                    self._beats.closed(name, time.monotonic())
                    if context in self._open.get(name, ()):
                        self._open[name].remove(context)
        return pb.PulseReply()


@contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except (MalformedError, DecodeError) as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


class Pulse:
    """Gives signs of life of this process for the time of the block, which ends it in order.

    A daemon thread sends them. If the connection breaks it opens another one, for as long as it
    takes; nothing is ever raised into the process.

    Args:
        endpoint: Of the supervisor's :class:`PulseServer`.
        token: The run's token.
        name: Which start of which process this is; no other start has the same.
        every_s: Seconds from one sign to the next.
        tls: As the server has it.
    """

    def __init__(
        self,
        endpoint: str,
        token: str,
        name: str,
        *,
        every_s: float = EVERY_S,
        tls: Tls | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._metadata = authorization(token)
        self._name = name
        self._every_s = every_s
        self._tls = tls
        self._leaving = threading.Event()
        self._channel: grpc.Channel | None = None
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.set()
        self._thread.join(LEAVE_S)
        if self._thread.is_alive() and self._channel is not None:
            self._channel.close()  # ends the call that waits for a supervisor that does not answer
            self._thread.join()

    def _run(self) -> None:
        while not self._leaving.is_set():
            # It is broken, or closed by __exit__ before the call (a ValueError), or a certificate
            # cannot be read: once more, if at all. Whether it matters is the supervisor's to judge.
            with suppress(grpc.RpcError, ValueError, OSError), self._opened() as channel:
                self._channel = channel
                beat = channel.stream_unary(
                    f"/{SERVICE}/Beat", pb.Pulse.SerializeToString, pb.PulseReply.FromString
                )
                beat(self._pulses(), metadata=self._metadata)
            self._leaving.wait(random.uniform(*AGAIN_S))

    def _pulses(self) -> Iterator[pb.Pulse]:
        while not self._leaving.is_set():
            yield pb.Pulse(name=self._name)
            self._leaving.wait(self._every_s)
        yield pb.Pulse(name=self._name, leaving=True)

    def _opened(self) -> grpc.Channel:
        # No keepalive: a supervisor that was stopped for a minute finds its connections standing.
        return open_channel(
            self._endpoint,
            self._tls,
            [
                ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
                ("grpc.enable_http_proxy", 0),
                # Others' connections to the same address, and their pauses, are none of ours.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
