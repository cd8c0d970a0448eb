"""The processes of a run on Ray: a few lines each around what does the work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from distbelief.config import ClusterConfig
from distbelief.errors import DistBeliefError, ProcessLostError, as_distbelief_error
from distbelief.observe.report import Report
from distbelief.replica.exchange import ShardPort
from distbelief.runtime.coordinator_host import CoordinatorHost, HostSpec
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.folder import Probe
from distbelief.runtime.worker import ModelSpec, Threads, run_replica
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.transport.client import ShardClient
from distbelief.transport.service import ShardServer
from distbelief.types import Orders, ReplicaReport

WATCH_S = 0.5

CALL_S = 60.0
"""Deadline of a call to the coordinator."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a shard serves, and what; ``node`` is the Ray node that it runs on."""

    shard: int
    begin: int
    end: int
    incarnation: int
    address: str
    node: str


def connect(
    endpoints: Sequence[Endpoint], token: str, config: ClusterConfig, stack: ExitStack
) -> tuple[list[ShardPort], list[ShardClient]]:
    """Opens a client to each shard, closed with ``stack``."""
    clients = [
        stack.enter_context(ShardClient(e.shard, e.address, token, timeout_s=config.rpc_timeout_s))
        for e in endpoints
    ]
    ports = [
        ShardPort(client, e.shard, e.begin, e.end, e.incarnation)
        for e, client in zip(endpoints, clients, strict=True)
    ]
    return ports, clients


def first_cause(error: BaseException) -> DistBeliefError:
    """What went wrong in an actor, without what Ray wraps around it."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, DistBeliefError):
        return error
    text = str(error).strip().splitlines()
    reason = next((line.strip() for line in text if line.strip()), type(error).__name__)
    return ProcessLostError("a process", f"{type(error).__name__}: {reason}")


def node_address() -> str:
    """The address of this node, by which the others reach it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


class RayCoordinator:
    """The coordinator's actor, behind the seam that replicas know."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`."""
        try:
            orders: Orders = ray.get(self._handle.report.remote(report), timeout=CALL_S)
        except RayError as error:
            raise ProcessLostError("the coordinator", first_cause(error).args[-1]) from error
        return orders


class _Actor:
    """What all have in common: the driver's import paths, and a call that lasts as long."""

    def __init__(self, import_paths: Sequence[str], threads: Threads) -> None:
        sys.path += [path for path in import_paths if path not in sys.path]
        torch.set_num_threads(threads.here())
        self._stack = ExitStack()
        self._closed = threading.Event()

    def watch(self) -> None:
        """Returns when the actor has been closed; fails when it dies or is of no use any more."""
        while not self._closed.wait(WATCH_S):
            self.check()

    def check(self) -> None:
        """Raises if the actor is of no use any more."""

    def close(self) -> None:
        """Ends what the actor runs, in order."""
        self._stack.close()
        self._closed.set()


class ShardActor(_Actor):
    """A parameter shard behind its gRPC server."""

    def start(self, spec: ShardSpec, token: str, probe: Probe) -> Endpoint:
        """Begins to serve on this node's address; returns where."""
        probe.check()
        self._shard = self._stack.enter_context(Shard(spec))
        server = ShardServer(
            self._shard,
            size=spec.size,
            token=token,
            n_clients=spec.n_replicas,
            host=node_address(),
        )
        self._stack.enter_context(server)
        node = ray.get_runtime_context().get_node_id()
        return Endpoint(spec.index, spec.begin, spec.end, spec.incarnation, server.endpoint, node)

    def check(self) -> None:
        """See :class:`_Actor`."""
        if self._shard.failure is not None:
            raise ProcessLostError(f"shard {self._shard.spec.index}", self._shard.failure)


class ReplicaActor(_Actor):
    """A replica: one long call."""

    def run(
        self,
        spec: ModelSpec,
        replica: int,
        endpoints: Sequence[Endpoint],
        token: str,
        coordinator: Any,
    ) -> None:
        """Trains until the coordinator says that it is over."""
        node = ray.get_runtime_context().get_node_id()
        ray.get(coordinator.emit.remote("replica_placed", {"replica": replica, "node": node}))
        with ExitStack() as stack:
            ports, _ = connect(endpoints, token, spec.config.cluster, stack)
            try:
                run_replica(
                    spec,
                    replica,
                    ports,
                    RayCoordinator(coordinator),
                    n_loaders=spec.config.data.loaders,
                )
            except Exception as error:  # as ours, it keeps on its way where it came from
                raise as_distbelief_error(error) from error


class EvaluatorActor(_Actor):
    """Evaluates the averaged weights, and writes them."""

    def start(self, spec: ModelSpec, endpoints: Sequence[Endpoint], token: str) -> None:
        """Gets ready."""
        self._ports, _ = connect(endpoints, token, spec.config.cluster, self._stack)
        self._evaluator = self._stack.enter_context(
            Evaluator(spec, n_loaders=spec.config.data.loaders)
        )

    def evaluate(self) -> dict[str, Any] | None:
        """See :meth:`Evaluator.evaluate`."""
        return self._evaluator.evaluate(self._ports)

    def write(self, name: str) -> None:
        """See :meth:`Evaluator.write`."""
        self._evaluator.write(self._ports, name)


class CoordinatorActor(_Actor):
    """The coordinator with its threads."""

    def start(
        self, spec: HostSpec, endpoints: Sequence[Endpoint], token: str, evaluator: Any
    ) -> None:
        """Begins to follow the shards."""
        self._evaluator = evaluator
        _, clients = connect(endpoints, token, spec.config.cluster, self._stack)
        self._host = self._stack.enter_context(CoordinatorHost(spec, clients, self._evaluate))

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`."""
        return self._host.report(report)

    def run_report(self) -> Report:
        """See :meth:`CoordinatorHost.run_report`."""
        return self._host.run_report()

    def replica_lost(self, replica: int, cause: str) -> int:
        """See :meth:`CoordinatorHost.replica_lost`."""
        return self._host.replica_lost(replica, cause)

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """Writes an event."""
        self._host.emit(kind, **fields)

    def stop(self) -> None:
        """Orders all replicas to end."""
        self._host.stop()

    def conclude(self, model_file: str) -> Report:
        """See :meth:`CoordinatorHost.conclude`."""

        def write() -> None:
            ray.get(self._evaluator.write.remote(model_file))

        return self._host.conclude(write)

    def _evaluate(self) -> dict[str, Any] | None:
        try:
            result: Any = ray.get(self._evaluator.evaluate.remote())
        except RayError as error:
            raise ProcessLostError("the evaluator", str(first_cause(error))) from error
        return None if result is None else dict(result)
