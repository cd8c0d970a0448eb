"""Whether something answers at an address."""

import socket
from concurrent import futures

import grpc

from distbelief.transport.probe import answers_grpc


def test_a_server_answers_until_it_is_stopped() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert answers_grpc(f"127.0.0.1:{port}", 30.0)
    finally:
        server.stop(0).wait()
    assert not answers_grpc(f"127.0.0.1:{port}", 0.3)


def test_an_address_where_nobody_listens() -> None:
    with socket.socket() as held:  # bound, so that nobody else takes it, but not listening
        held.bind(("127.0.0.1", 0))
        assert not answers_grpc(f"127.0.0.1:{held.getsockname()[1]}", 0.3)


def test_a_listener_that_never_speaks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not answers_grpc(f"127.0.0.1:{mute.getsockname()[1]}", 0.3)
