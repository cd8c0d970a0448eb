"""A run inside one process, without Ray: replicas and shards are threads, stages processes.

For tests, notebooks, and machines that have no Ray.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch

from distbelief.errors import as_distbelief_error
from distbelief.observe.report import Report
from distbelief.replica.exchange import ShardPort
from distbelief.runtime.coordinator_host import CoordinatorHost
from distbelief.runtime.endpoints import Endpoint
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.seat import Seat
from distbelief.runtime.stage_processes import StageProcesses, StageTask
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
        self._token = secrets.token_hex(16)
        self._stages: dict[int, StageProcesses] = {}
        self._free_slots = list(range(prepared.config.cluster.replicas))
        self._threads: dict[int, threading.Thread] = {}
        self._ended: list[ReplicaEnd] = []
        self._changed = threading.Condition()

    def __enter__(self) -> LocalWorld:
        config = self._prepared.config
        with ExitStack() as stack:
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            n_processes = sum(slot.stages for slot in config.slots)
            self._threads_here = Threads(config.replica.threads, neighbours=n_processes)
            torch.set_num_threads(self._threads_here.here())
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
        seat = Seat(replica, self._free_slots.pop(0))
        thread = threading.Thread(
            target=self._run_replica, args=(seat,), name=f"replica-{replica}", daemon=True
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
        for stages in list(self._stages.values()):
            stages.stop()

    def conclude(self, model_file: str) -> Report:
        """See :class:`World`."""
        return self._host.conclude(lambda: self._evaluator.write(self.ports, model_file))

    def _start_shards(self, stack: ExitStack) -> Sequence[ShardService]:
        config = self._prepared.config
        token = self._token
        services: list[ShardService] = []
        self.ports: list[ShardPort] = []
        self._endpoints: list[Endpoint] = []
        staged = any(slot.stages > 1 for slot in config.slots)
        for index in range(config.cluster.shards):
            spec = self._prepared.shard_spec(index)
            shard = stack.enter_context(Shard(spec))
            service: ShardService = shard
            if staged or self._transport == "grpc":
                server = stack.enter_context(
                    ShardServer(service, size=spec.size, token=token, n_clients=spec.n_ports)
                )
                stack.callback(shard.abandon)  # before the server waits for its calls
                self._endpoints.append(
                    Endpoint(index, spec.begin, spec.end, spec.incarnation, server.endpoint)
                )
                client = ShardClient(
                    index, server.endpoint, token, timeout_s=config.cluster.rpc_timeout_s
                )
                # Stages are other processes; what counts their traffic is the server.
                service = stack.enter_context(client)
            services.append(service)
            self.ports.append(ShardPort(service, index, spec.begin, spec.end, spec.incarnation))
        return services

    def _run_replica(self, seat: Seat) -> None:
        end = ReplicaEnd(seat.replica, None)
        try:
            if self._prepared.config.slots[seat.slot].stages > 1:
                self._run_stages(seat)
            else:
                run_replica(self._spec, seat, self.ports, self._host, n_loaders=self._n_loaders)
        except Exception as error:
            end = ReplicaEnd(seat.replica, as_distbelief_error(error))
        with self._changed:
            self._free_slots.append(seat.slot)
            self._ended.append(end)
            self._changed.notify_all()

    def _run_stages(self, seat: Seat) -> None:
        slot = self._prepared.config.slots[seat.slot]
        threads = slot.threads or self._threads_here.here()
        task = StageTask(
            spec=self._spec,
            seat=seat,
            endpoints=tuple(self._endpoints),
            token=self._token,
            n_threads=threads,
            n_loaders=self._n_loaders,
        )
        tasks = [replace(task, seat=replace(seat, stage=k)) for k in range(slot.stages)]
        with StageProcesses(tasks) as stages:
            self._stages[seat.replica] = stages
            for stage, pid in enumerate(stages.pids):
                self.emit("replica_placed", replica=seat.replica, stage=stage, pid=pid)
            stages.run(self._host)

    def _join_replicas(self) -> None:
        self._host.stop()
        for thread in self._threads.values():
            thread.join()
