"""The shards as a process of the run reaches them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import TrainConfig
from distbelief.errors import TransportError
from distbelief.replica.exchange import ShardPort
from distbelief.replication import ClusterConfig
from distbelief.runtime import endpoints as module
from distbelief.runtime.endpoints import Access, connect, ports_through
from distbelief.serving import Endpoint, Serving, write_serving
from distbelief.storage import LocalStorage
from distbelief.transport import routes
from distbelief.transport.routes import FileDirectory
from distbelief.types import Version

ENDPOINTS = (
    Endpoint(shard=0, begin=0, end=10, incarnation=3, address="127.0.0.1:1"),
    Endpoint(shard=1, begin=10, end=25, incarnation=1, address="127.0.0.1:2", node="n"),
)
SERVING = Serving(number=4, run=1, shards=ENDPOINTS)


class Client:
    """Keeps how it was made, and answers every fetch with the address that it was asked at."""

    made: list[Client]

    def __init__(self, shard: int, address: str, token: str, **options: Any) -> None:
        self.made_with = (shard, address, token), options
        self.address = address
        self.closed = False
        self.made.append(self)

    def fetch(self, out: torch.Tensor, **options: Any) -> Version:
        out.fill_(float(self.address.rpartition(":")[2]))
        return Version(1, 0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    made: list[Client] = []
    monkeypatch.setattr(Client, "made", made, raising=False)
    monkeypatch.setattr(module, "ShardClient", Client)
    monkeypatch.setattr(routes, "LOOK_S", 0.0)
    return made


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(storage=LocalStorage(tmp_path), serving=SERVING, token="secret")


def fetched(shard: ShardPort) -> float:
    """The value that a fetch brings."""
    out = torch.zeros(1)
    shard.service.fetch(out, begin=shard.begin)
    return out.item()


def test_a_client_and_a_port_for_each_shard(made: list[Client], access: Access) -> None:
    config = TrainConfig(cluster=ClusterConfig(rpc_timeout_s=37.0))
    with ExitStack() as stack:
        connected = connect(access, config, stack, sender="4.1")
        assert connected.ports == tuple(
            ShardPort(shard, e.shard, e.begin, e.end, e.incarnation)
            for shard, e in zip(connected.shards, ENDPOINTS, strict=True)
        )
        assert [fetched(port) for port in connected.ports] == [1.0, 2.0]
        options = {"timeout_s": 37.0, "sender": "4.1", "tls": None}
        assert [client.made_with for client in made] == [
            ((0, "127.0.0.1:1", "secret"), options),
            ((1, "127.0.0.1:2", "secret"), options),
        ]
        assert not any(client.closed for client in made)
    assert all(client.closed for client in made)


def test_a_shard_that_has_moved_is_found(made: list[Client], access: Access) -> None:
    with ExitStack() as stack:
        connected = connect(access, TrainConfig(), stack)
        first, second = connected.ports
        assert fetched(first) == 1.0
        moved = Endpoint(shard=0, begin=0, end=10, incarnation=4, address="127.0.0.1:9")
        write_serving(access.storage, SERVING.changed(shards=(moved, ENDPOINTS[1])))
        connected.directory.look()
        assert [fetched(first), fetched(second)] == [9.0, 2.0]
        assert [c.closed for c in made] == [True, False, False]


def test_nothing_is_sent_before_the_first_call(access: Access) -> None:
    """Where nobody serves."""
    with ExitStack() as stack:
        connected = connect(access, TrainConfig(), stack)
        assert [port.service for port in connected.ports] == list(connected.shards)


def test_ports_through_a_directory_that_is_open_leave_it_open(
    made: list[Client], access: Access
) -> None:
    config = TrainConfig()
    with FileDirectory(access.storage, SERVING, lambda e: access.client(e, config)) as directory:
        connected = ports_through(directory, SERVING)
        assert [fetched(port) for port in connected.ports] == [1.0, 2.0]
        assert not any(client.closed for client in made)
    with pytest.raises(TransportError):
        fetched(connected.ports[0])
