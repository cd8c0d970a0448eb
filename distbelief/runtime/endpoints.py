"""Where shards serve, and the clients that reach them there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from distbelief.replica.exchange import ShardPort
from distbelief.replication import ClusterConfig
from distbelief.transport.client import ShardClient


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a shard serves, and what; ``node`` is the Ray node that it runs on, if it does."""

    shard: int
    begin: int
    end: int
    incarnation: int
    address: str
    node: str = ""


def connect(
    endpoints: Sequence[Endpoint],
    token: str,
    config: ClusterConfig,
    stack: ExitStack,
    *,
    sender: str = "",
) -> tuple[list[ShardPort], list[ShardClient]]:
    """A client for each shard, closed with ``stack``; nothing is sent before the first call.

    ``sender`` is the name under which shards count what they exchange with this process.
    """
    clients = [
        stack.enter_context(
            ShardClient(e.shard, e.address, token, timeout_s=config.rpc_timeout_s, sender=sender)
        )
        for e in endpoints
    ]
    ports = [
        ShardPort(client, e.shard, e.begin, e.end, e.incarnation)
        for e, client in zip(endpoints, clients, strict=True)
    ]
    return ports, clients
