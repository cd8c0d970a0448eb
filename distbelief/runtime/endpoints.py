"""How the processes of a run reach one another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from distbelief.config import TrainConfig
from distbelief.replica.exchange import ShardPort
from distbelief.serving import Endpoint, Serving
from distbelief.storage import Storage
from distbelief.transport.client import ShardClient
from distbelief.transport.routes import FileDirectory, RoutedShard
from distbelief.transport.security import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a process must know to reach the others; plain values.

    Attributes:
        storage: The run's folder, which tells who serves.
        serving: What it says now.
        token: The run's secret.
        key: A word that the names of this run's actors begin with.
        supervisor: Where the supervisor hears that processes live, HOST:PORT; empty without one.
    """

    storage: Storage
    serving: Serving
    token: str = field(repr=False)
    key: str = ""
    supervisor: str = ""

    def client(
        self,
        endpoint: Endpoint,
        config: TrainConfig,
        sender: str = "",
        timeout_s: float | None = None,
    ) -> ShardClient:
        """A client for one start of a shard; nothing is sent before the first call."""
        cluster = config.cluster
        return ShardClient(
            endpoint.shard,
            endpoint.address,
            self.token,
            timeout_s=timeout_s or cluster.rpc_timeout_s,
            sender=sender,
            tls=Tls.of(cluster),
        )


@dataclass(frozen=True, slots=True)
class Connected:
    """The shards as a process of the run reaches them, wherever they serve."""

    directory: FileDirectory
    shards: tuple[RoutedShard, ...]
    ports: tuple[ShardPort, ...]


def connect(
    access: Access,
    config: TrainConfig,
    stack: ExitStack,
    *,
    sender: str = "",
    patience_s: float = 0.0,
) -> Connected:
    """The shards, for as long as ``stack`` is open; nothing is sent before the first call.

    Args:
        access: How to reach them.
        config: The run.
        stack: Closes it all.
        sender: The name under which shards count what they exchange with this process.
        patience_s: A fetch is tried again by itself for so long.
    """
    directory = FileDirectory(
        access.storage, access.serving, lambda e: access.client(e, config, sender)
    )
    return ports_through(stack.enter_context(directory), access.serving, patience_s=patience_s)


def ports_through(
    directory: FileDirectory, serving: Serving, *, patience_s: float = 0.0
) -> Connected:
    """The shards through a directory that is open already."""
    shards = tuple(RoutedShard(e.shard, directory, patience_s=patience_s) for e in serving.shards)
    ports = tuple(
        ShardPort(shard, e.shard, e.begin, e.end, e.incarnation)
        for e, shard in zip(serving.shards, shards, strict=True)
    )
    return Connected(directory, shards, ports)
