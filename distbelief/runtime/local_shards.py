"""The shards of a run inside one process, each start of them by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

from distbelief.config import TrainConfig
from distbelief.errors import TransportError
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.services import ShardService, TwinService
from distbelief.serving import Endpoint
from distbelief.transport.client import ShardClient
from distbelief.transport.routes import Client
from distbelief.transport.security import Tls
from distbelief.transport.service import ShardServer

IN_PROCESS = "in-process:"


@dataclass(slots=True)
class _Running:
    """One start of a shard; ``stack`` ends it."""

    shard: Shard
    endpoint: Endpoint
    stack: ExitStack


class LocalShards:
    """Starts and ends shards, and reaches them; a context manager that ends what is left.

    Args:
        config: The run.
        token: Its secret.
        by_grpc: Whether they are reached through sockets, or called directly.
    """

    def __init__(self, config: TrainConfig, token: str, *, by_grpc: bool) -> None:
        self._config = config
        self._token = token
        self._by_grpc = by_grpc
        self._running: dict[tuple[int, int], _Running] = {}
        self._told: set[tuple[int, int]] = set()

    def __enter__(self) -> LocalShards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            for key in list(self._running):
                stack.callback(self.end, *key)

    def start(self, spec: ShardSpec) -> Endpoint:
        """Starts a shard, which has its state when this returns, and tells where it serves.

        Raises:
            DistBeliefError: its state cannot be read.
        """
        key = spec.index, spec.incarnation
        with ExitStack() as stack:
            shard = stack.enter_context(Shard(spec, connect=self._connect_twin))
            address = f"{IN_PROCESS}{spec.index}.{spec.incarnation}"
            if self._by_grpc:
                tls = Tls.of(self._config.cluster)
                server = ShardServer(
                    shard, size=spec.size, token=self._token, n_clients=spec.n_ports, tls=tls
                )
                address = stack.enter_context(server).endpoint
            stack.callback(shard.abandon)  # before a server waits for its calls
            endpoint = Endpoint(
                spec.index,
                spec.begin,
                spec.end,
                spec.incarnation,
                address,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
            self._running[key] = _Running(shard, endpoint, stack.pop_all())
        return endpoint

    def end(self, shard: int, incarnation: int) -> None:
        """Ends one start of a shard, if it is there."""
        running = self._running.pop((shard, incarnation), None)
        if running is not None:
            running.stack.close()

    def abandon(self) -> None:
        """Nobody waits any longer, for a pause's end, a part of a push, or a twin."""
        for running in list(self._running.values()):
            running.shard.abandon()

    def lost(self) -> list[tuple[int, int, str]]:
        """Those that have failed since the last call: shard, incarnation and why."""
        found = [
            (*key, running.shard.failure)
            for key, running in list(self._running.items())
            if running.shard.failure is not None and key not in self._told
        ]
        self._told |= {(shard, incarnation) for shard, incarnation, _ in found}
        return [(shard, incarnation, str(cause)) for shard, incarnation, cause in found]

    def client(self, endpoint: Endpoint) -> Client:
        """One start of a shard as others see it."""
        if self._by_grpc:
            return self._grpc_client(endpoint)
        # Whoever calls one that has ended is told so, as through a socket.
        return cast(Client, _Direct(self, endpoint))

    @contextmanager
    def at(self, endpoint: Endpoint) -> Iterator[ShardService]:
        """The same, for the time of the block."""
        client = self.client(endpoint)
        try:
            yield client
        finally:
            client.close()

    def running(self, endpoint: Endpoint) -> Shard:
        """One start of a shard; raises TransportError if it has ended."""
        try:
            return self._running[endpoint.shard, endpoint.incarnation].shard
        except KeyError:
            raise TransportError(endpoint.shard, "UNAVAILABLE", "it has ended") from None

    def _grpc_client(self, endpoint: Endpoint) -> ShardClient:
        cluster = self._config.cluster
        return ShardClient(
            endpoint.shard,
            endpoint.address,
            self._token,
            timeout_s=cluster.rpc_timeout_s,
            tls=Tls.of(cluster),
        )

    def _connect_twin(self, address: str) -> AbstractContextManager[TwinService]:
        found = [r.endpoint for r in list(self._running.values()) if r.endpoint.address == address]
        if not found:
            raise TransportError(-1, "UNAVAILABLE", f"there is no shard at {address}")
        return cast(AbstractContextManager[TwinService], self.at(found[0]))


class _Direct:
    """Calls a shard in this process, as long as it is there."""

    def __init__(self, shards: LocalShards, endpoint: Endpoint) -> None:
        self._shards = shards
        self._endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shards.running(self._endpoint), name)

    def close(self) -> None:
        """Nothing is to be closed."""
