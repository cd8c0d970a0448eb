"""Whether something answers at an address, and to whom."""

from __future__ import annotations

import socket

import grpc


def answers_grpc(address: str, timeout_s: float) -> bool:
    """Whether a gRPC server takes connections at ``HOST:PORT`` within ``timeout_s``. Blocks."""
    host, _, port = address.rpartition(":")
    try:
        # A refused connection is known at once; gRPC would go on trying.
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except (OSError, ValueError):
        return False
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
    return True


def asks_for_a_token(address: str, timeout_s: float) -> bool:
    """Whether the head of a Ray cluster at ``HOST:PORT`` refuses a call that has no token. Blocks.

    The call asks whether no nodes are alive, and changes nothing.
    """
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive", None, None)
        try:
            ask(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
