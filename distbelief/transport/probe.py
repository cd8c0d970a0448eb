"""Whether something answers at an address."""

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
