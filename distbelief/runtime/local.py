"""A run inside one process, without Ray: replicas and shards are threads.

For tests, notebooks, and machines that have no Ray.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch

from distbelief.errors import as_distbelief_error
from distbelief.observe.report import Report
from distbelief.replica.exchange import ShardPort
from distbelief.runtime.coordinator_host import CoordinatorHost, HostSpec
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.worker import ModelSpec, Threads, run_replica
from distbelief.runtime.world import ReplicaEnd
from distbelief.server.shard import Shard
from distbelief.transport.client import ShardClient
from distbelief.transport.service import ShardServer
from distbelief.types import ShardService


class LocalWorld:
    """Satisfies :class:`~distbelief.runtime.world.World` with threads.

    Args:
        prepared: The run.
        transport: ``direct`` calls the shards; ``grpc`` reaches them through sockets.
        n_loaders: Loader processes of each replica; by default as configured, 0 for threads.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        transport: Literal["direct", "grpc"] = "direct",
        n_loaders: int | None = None,
    ) -> None:
        self._prepared = prepared
        self._transport = transport
        self._n_loaders = prepared.config.data.loaders if n_loaders is None else n_loaders
        self._spec = ModelSpec.of(prepared)
        self._stack = ExitStack()
        self._threads: dict[int, threading.Thread] = {}
        self._ended: list[ReplicaEnd] = []
        self._changed = threading.Condition()

    def __enter__(self) -> LocalWorld:
        with ExitStack() as stack:
            config = self._prepared.config
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            threads = Threads(config.replica.threads, neighbours=config.cluster.replicas)
            torch.set_num_threads(threads.here())
            services = self._start_shards(stack)
            if self._prepared.resumed is None:
                for port, service in zip(self.ports, services, strict=True):
                    service.load(self._prepared.initial[port.begin : port.end])
            evaluator = stack.enter_context(Evaluator(self._spec, n_loaders=self._n_loaders))
            self._evaluator = evaluator
            self._host = stack.enter_context(
                CoordinatorHost(
                    HostSpec.of(self._prepared), services, lambda: evaluator.evaluate(self.ports)
                )
            )
            stack.callback(self._join_replicas)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_replica(self, replica: int) -> None:
        """See :class:`World`."""
        thread = threading.Thread(
            target=self._run_replica, args=(replica,), name=f"replica-{replica}", daemon=True
        )
        self._threads[replica] = thread
        self._host.emit("replica_started", replica=replica)
        thread.start()

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        """See :class:`World`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, timeout_s)
            taken, self._ended = self._ended, []
            return taken

    def report(self) -> Report:
        """See :class:`World`."""
        return self._host.run_report()

    def replica_lost(self, replica: int, cause: str) -> int:
        """See :class:`World`."""
        return self._host.replica_lost(replica, cause)

    def emit(self, kind: str, **fields: Any) -> None:
        """See :class:`World`."""
        self._host.emit(kind, **fields)

    def stop(self) -> None:
        """See :class:`World`."""
        self._host.stop()

    def conclude(self, model_file: str) -> Report:
        """See :class:`World`."""
        return self._host.conclude(lambda: self._evaluator.write(self.ports, model_file))

    def _start_shards(self, stack: ExitStack) -> Sequence[ShardService]:
        config = self._prepared.config
        token = secrets.token_hex(16)
        services: list[ShardService] = []
        self.ports: list[ShardPort] = []
        for index in range(config.cluster.shards):
            spec = self._prepared.shard_spec(index)
            service: ShardService = stack.enter_context(Shard(spec))
            if self._transport == "grpc":
                server = stack.enter_context(
                    ShardServer(
                        service, size=spec.size, token=token, n_clients=config.cluster.replicas
                    )
                )
                service = stack.enter_context(
                    ShardClient(
                        index, server.endpoint, token, timeout_s=config.cluster.rpc_timeout_s
                    )
                )
            services.append(service)
            self.ports.append(ShardPort(service, index, spec.begin, spec.end, spec.incarnation))
        return services

    def _run_replica(self, replica: int) -> None:
        end = ReplicaEnd(replica, None)
        try:
            run_replica(self._spec, replica, self.ports, self._host, n_loaders=self._n_loaders)
        except Exception as error:
            end = ReplicaEnd(replica, as_distbelief_error(error))
        with self._changed:
            self._ended.append(end)
            self._changed.notify_all()

    def _join_replicas(self) -> None:
        self._host.stop()
        for thread in self._threads.values():
            thread.join()
