"""What stands before a server's handlers: who may call, and how long a call may last.

gRPC gives each call a thread of the server's pool, where it waits for its request. So the token is
looked at before that: who has none keeps no thread, and sends no more than a connection's window.
Who has it keeps a thread for as long as the call's deadline says, which gRPC holds it to on this
side as well, in whatever it waits for: messages that do not come, or answers that nobody takes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from distbelief.transport.codec import MAX_HEADER_NBYTES, MalformedError

AUTHORIZATION_KEY = "authorization"

SLACK_S = 60.0
"""Clocks of two hosts go apart by so much at most."""

MAX_CALL_S = 3600.0
"""The longest deadline that a call may have."""

if TYPE_CHECKING:
    _Base = grpc.GenericRpcHandler[Any, Any]
else:  # it takes parameters in the stubs alone
    _Base = grpc.GenericRpcHandler

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Errors = Callable[[grpc.ServicerContext], AbstractContextManager[None]]


def authorization(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that every call must carry."""
    return ((AUTHORIZATION_KEY, f"Bearer {token}"),)


class Guard(_Base):
    """Stands before the handlers of a server.

    - A call without the token is answered UNAUTHENTICATED, whatever it asks, and is not read.
    - A call without a deadline, or with a longer one than it may have, is malformed.
    - Messages are decoded in the handler's thread, so that none delays what others send; a single
      request that is too large is malformed.

    Args:
        handlers: What is behind it.
        token: The run's token.
        errors: Entered around what is found malformed, to answer it.
        max_call_s: The longest deadline; None if calls may go on for ever.
    """

    def __init__(
        self,
        handlers: grpc.GenericRpcHandler[Any, Any],
        token: str,
        errors: Errors,
        *,
        max_call_s: float | None = MAX_CALL_S,
    ) -> None:
        self._handlers = handlers
        self._wanted = authorization(token)[0][1].encode()
        self._errors = errors
        self._max_call_s = max_call_s

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See :class:`grpc.GenericRpcHandler`."""
        given = dict(details.invocation_metadata or ()).get(AUTHORIZATION_KEY, "")
        if not hmac.compare_digest(str(given).encode(), self._wanted):
            return _TURNED_AWAY
        handler: Any = self._handlers.service(details)
        if handler is None:
            return None
        # Raw messages: gRPC would decode them in the one thread that serves all calls.
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream
            make = grpc.stream_stream_rpc_method_handler
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            make = grpc.stream_unary_rpc_method_handler
        call = self._streaming if handler.request_streaming else self._single
        return make(
            call(behaviour, handler.request_deserializer), None, handler.response_serializer
        )

    def _streaming(self, behaviour: Behaviour, decode: Callable[[bytes], Any]) -> Behaviour:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._errors(context):
                self._check_deadline(context)
            return behaviour(map(decode, messages), context)

        return call

    def _single(self, behaviour: Behaviour, decode: Callable[[bytes], Any]) -> Behaviour:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._errors(context):
                self._check_deadline(context)
                message = next(messages, None)
                if message is None:
                    raise MalformedError("no request came")
                if len(message) > MAX_HEADER_NBYTES:
                    raise MalformedError(f"a request of {len(message)} bytes")
                request = decode(message)
            return behaviour(request, context)

        return call

    def _check_deadline(self, context: grpc.ServicerContext) -> None:
        limit = self._max_call_s
        if limit is not None and context.time_remaining() > limit + SLACK_S:
            raise MalformedError(f"a call needs a deadline, of {limit:g} s at most")


def _turn_away(messages: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the run's token is missing or wrong")
    raise AssertionError("abort returned")


_TURNED_AWAY = grpc.stream_unary_rpc_method_handler(_turn_away)
