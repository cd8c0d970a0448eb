"""The processes of a run on Ray: a few lines each around what does the work."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from distbelief.errors import DistBeliefError, ProcessLostError, as_distbelief_error
from distbelief.observe.report import Report
from distbelief.replica.group import Meeting, keep_store
from distbelief.runtime.coordinator_host import CoordinatorHost
from distbelief.runtime.endpoints import Endpoint, connect
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.folder import Probe
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.seat import Seat
from distbelief.runtime.worker import ModelSpec, Threads, run_replica
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.transport.service import ShardServer
from distbelief.types import Orders, ReplicaReport

# What Ray hands out for an actor of ours has no type that a checker could follow.
Handle = Any
Ref = Any

WATCH_S = 0.5

CALL_S = 60.0
"""Deadline of a call to the coordinator."""


def unwrapped(error: BaseException, what: str = "a process") -> DistBeliefError:
    """What went wrong in an actor, without what Ray wraps around it; ``what`` if it has died."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, DistBeliefError):
        return error
    text = str(error).strip().splitlines()
    reason = next((line.strip() for line in text if line.strip()), type(error).__name__)
    return ProcessLostError(what, f"{type(error).__name__}: {reason}")


def node_address() -> str:
    """The address of this node, by which the others reach it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


class RayCoordinator:
    """The coordinator's actor, behind the seam that replicas know."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`."""
        orders: Orders = self._answer(self._handle.report.remote(report))
        return orders

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event."""
        self._answer(self._handle.emit.remote(kind, fields))

    def _answer(self, ref: Ref) -> Any:
        try:
            return ray.get(ref, timeout=CALL_S)
        except RayError as error:
            raise ProcessLostError("the coordinator", unwrapped(error).args[-1]) from error


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
            n_clients=spec.n_ports,
            host=node_address(),
        )
        self._stack.enter_context(server)
        self._stack.callback(self._shard.abandon)  # before the server waits for its calls
        node = ray.get_runtime_context().get_node_id()
        return Endpoint(spec.index, spec.begin, spec.end, spec.incarnation, server.endpoint, node)

    def check(self) -> None:
        """See :class:`_Actor`."""
        if self._shard.failure is not None:
            raise ProcessLostError(f"shard {self._shard.spec.index}", self._shard.failure)


class ReplicaActor(_Actor):
    """One stage of a replica: one long call."""

    def meet(self, n_stages: int) -> Meeting:
        """Where the stages meet, for as long as this actor lives: it has the first of them."""
        try:
            self._store, meeting = keep_store(node_address(), n_stages)
        except Exception as error:
            raise as_distbelief_error(error) from error
        return meeting

    def run(
        self,
        spec: ModelSpec,
        replica: int,
        slot: int,
        stage: int,
        meeting: Meeting | None,
        endpoints: Sequence[Endpoint],
        token: str,
        coordinator: Handle,
    ) -> None:
        """Trains until the coordinator says that it is over."""
        seat = Seat(replica, slot, stage, meeting, node_address())
        node = ray.get_runtime_context().get_node_id()
        service = RayCoordinator(coordinator)
        sender = f"{replica}.{stage}"
        try:
            service.emit("replica_placed", replica=replica, stage=stage, node=node, pid=os.getpid())
            with ExitStack() as stack:
                ports, _ = connect(endpoints, token, spec.config.cluster, stack, sender=sender)
                run_replica(spec, seat, ports, service, n_loaders=spec.config.data.loaders)
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
        self, spec: HostSpec, endpoints: Sequence[Endpoint], token: str, evaluator: Handle
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
            raise ProcessLostError("the evaluator", str(unwrapped(error))) from error
        return None if result is None else dict(result)
