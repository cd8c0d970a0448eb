"""The clients that reach the shards where they serve."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from distbelief.replica.exchange import ShardPort
from distbelief.replication import ClusterConfig
from distbelief.runtime import endpoints as module
from distbelief.runtime.endpoints import Endpoint, connect

ENDPOINTS = [
    Endpoint(shard=0, begin=0, end=10, incarnation=3, address="127.0.0.1:1"),
    Endpoint(shard=1, begin=10, end=25, incarnation=1, address="127.0.0.1:2", node="n"),
]


class Client:
    """Keeps how it was made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.made_with = args, options
        self.closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.closed = True


def test_a_client_and_a_port_for_each_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ShardClient", Client)
    with ExitStack() as stack:
        config = ClusterConfig(rpc_timeout_s=7.0)
        ports, clients = connect(ENDPOINTS, "secret", config, stack, sender="4.1")
        options = {"timeout_s": 7.0, "sender": "4.1"}
        assert [client.made_with for client in clients] == [  # type: ignore[attr-defined]
            ((0, "127.0.0.1:1", "secret"), options),
            ((1, "127.0.0.1:2", "secret"), options),
        ]
        assert ports == [
            ShardPort(clients[0], 0, 0, 10, incarnation=3),
            ShardPort(clients[1], 1, 10, 25, incarnation=1),
        ]
        assert not any(client.closed for client in clients)  # type: ignore[attr-defined]
    assert all(client.closed for client in clients)  # type: ignore[attr-defined]


def test_nothing_is_sent_before_the_first_call() -> None:
    """Where nobody serves."""
    with ExitStack() as stack:
        ports, clients = connect(ENDPOINTS, "secret", ClusterConfig(), stack)
        assert [port.service for port in ports] == clients
