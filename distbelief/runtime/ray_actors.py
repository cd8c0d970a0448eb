"""The processes of a run on Ray: a few lines each around what does the work."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError

from distbelief.config import TrainConfig
from distbelief.errors import ProcessLostError, as_distbelief_error
from distbelief.observe.report import Report
from distbelief.replica.group import Meeting, keep_store
from distbelief.runtime.coordinator_host import CoordinatorHost
from distbelief.runtime.endpoints import Access, connect
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.fence import Fence
from distbelief.runtime.folder import Probe
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.ray_coordinator import RayCoordinator
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.seat import Seat
from distbelief.runtime.worker import ModelSpec, Threads, run_replica
from distbelief.runtime.world import Post, cause_of
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.serving import Endpoint
from distbelief.transport.client import ShardClient
from distbelief.transport.pulse import Pulse
from distbelief.transport.security import Tls
from distbelief.transport.service import ShardServer
from distbelief.types import Orders, ReplicaReport

# What Ray hands out for an actor of ours has no type that a checker could follow.
Handle = Any
Ref = Any

WATCH_S = 0.5


def here() -> dict[str, Any]:
    """Where this process is, for events and for whoever wants to look at it."""
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "host": socket.gethostname(), "pid": os.getpid()}


def replica_name(replica: int, stage: int) -> str:
    """By which the supervisor knows a process of a replica."""
    return f"replica {replica} stage {stage}"


def node_address() -> str:
    """The address of this node, by which the others reach it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


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
            if self.superseded():
                # Nobody may be left who would end this process: it was given up long ago.
                self.close()
                os._exit(0)
            self.check()

    def superseded(self) -> bool:
        """Whether another has taken this actor's place."""
        return False

    def check(self) -> None:
        """Raises if the actor is of no use any more."""

    def live(self, access: Access, name: str, config: TrainConfig) -> None:
        """Lets the supervisor hear from now on that this process lives."""
        tls = Tls.of(config.cluster)
        self._stack.enter_context(Pulse(access.supervisor, access.token, name, tls=tls))

    def close(self) -> None:
        """Ends what the actor runs, in order."""
        self._stack.close()
        self._closed.set()


class ShardActor(_Actor):
    """A parameter shard, or a twin of one, behind its gRPC server."""

    def start(self, spec: ShardSpec, config: TrainConfig, access: Access, probe: Probe) -> Endpoint:
        """Begins to answer on this node's address, with its state if it has one; tells where."""
        probe.check()
        run = access.serving.run
        self.live(access, str(Post("shard", spec.index, spec.incarnation)), config)
        self._fence = Fence(spec.storage, spec.index, spec.incarnation, run)
        self._stack.enter_context(self._fence)

        def connect_twin(address: str) -> ShardClient:
            twin = Endpoint(spec.index, spec.begin, spec.end, 0, address)
            return access.client(twin, config)

        try:
            self._shard = self._stack.enter_context(Shard(spec, connect=connect_twin))
            server = ShardServer(
                self._shard,
                size=spec.size,
                token=access.token,
                n_clients=spec.n_ports,
                host=node_address(),
                fence=self._fence,
                tls=Tls.of(config.cluster),
            )
            self._stack.enter_context(server)
        except Exception as error:  # as ours, it keeps on its way where it came from
            raise as_distbelief_error(error) from error
        self._stack.callback(self._shard.abandon)  # before the server waits for its calls
        return Endpoint(
            spec.index,
            spec.begin,
            spec.end,
            spec.incarnation,
            server.endpoint,
            **here(),
        )

    def superseded(self) -> bool:
        """See :class:`_Actor`."""
        return bool(self._fence.fenced)

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
        access: Access,
    ) -> None:
        """Trains until the coordinator says that it is over."""
        seat = Seat(replica, slot, stage, meeting, node_address())
        sender = f"{replica}.{stage}"
        self.live(access, replica_name(replica, stage), spec.config)
        try:
            with ExitStack() as stack:
                shards = connect(access, spec.config, stack, sender=sender)
                service = RayCoordinator(
                    access.key, shards.directory, spec.config.cluster.patience_s
                )
                service.emit("replica_placed", replica=replica, stage=stage, **here())
                run_replica(spec, seat, shards.ports, service, n_loaders=spec.config.data.loaders)
        except Exception as error:  # as ours, it keeps on its way where it came from
            raise as_distbelief_error(error) from error


class EvaluatorActor(_Actor):
    """Evaluates the averaged weights, and writes them."""

    def start(self, spec: ModelSpec, access: Access, number: int) -> dict[str, Any]:
        """Gets ready; tells where it is."""
        self.live(access, str(Post("evaluator", 0, number)), spec.config)
        patience_s = spec.config.cluster.patience_s
        self._ports = connect(access, spec.config, self._stack, patience_s=patience_s).ports
        self._evaluator = self._stack.enter_context(
            Evaluator(spec, n_loaders=spec.config.data.loaders)
        )
        return here()

    def evaluate(self) -> dict[str, Any] | None:
        """See :meth:`Evaluator.evaluate`."""
        return self._evaluator.evaluate(self._ports)

    def write(self, name: str) -> None:
        """See :meth:`Evaluator.write`."""
        self._evaluator.write(self._ports, name)


class CoordinatorActor(_Actor):
    """The coordinator with its threads."""

    def __init__(self, import_paths: Sequence[str], threads: Threads) -> None:
        super().__init__(import_paths, threads)
        self._begun = threading.Event()

    def start(self, spec: HostSpec, access: Access, evaluator: Handle) -> dict[str, Any]:
        """Begins to follow the shards; tells where it is."""
        self._evaluator = evaluator
        self.live(access, str(Post("coordinator", 0, spec.start)), spec.config)
        shards = connect(access, spec.config, self._stack).shards
        self._host = self._stack.enter_context(CoordinatorHost(spec, shards, self._evaluate))
        self._patience_s = spec.config.cluster.patience_s
        self._begun.set()
        return here()

    def use_evaluator(self, evaluator: Handle) -> None:
        """Another evaluator has taken the place of the one before."""
        self._evaluator = evaluator

    def superseded(self) -> bool:
        """See :class:`_Actor`."""
        return bool(self._host.dead)

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`; waits until it has begun."""
        self._begun.wait()
        return self._host.report(report)

    def run_report(self) -> Report:
        """See :meth:`CoordinatorHost.run_report`."""
        return self._host.run_report()

    def replica_lost(self, replica: int, cause: str) -> int:
        """See :meth:`CoordinatorHost.replica_lost`."""
        return self._host.replica_lost(replica, cause)

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """Writes an event."""
        self._begun.wait()
        self._host.emit(kind, **fields)

    def stop(self) -> None:
        """Orders all replicas to end."""
        self._host.stop()

    def conclude(self, model_file: str) -> Report:
        """See :meth:`CoordinatorHost.conclude`."""

        def write() -> None:
            give_up_at = time.monotonic() + self._patience_s
            while True:
                try:
                    ray.get(self._evaluator.write.remote(model_file))
                    return
                except RayActorError as error:  # another may take its place
                    if time.monotonic() > give_up_at:
                        raise unwrapped(error, "the evaluator") from error
                    self._closed.wait(WATCH_S)

        return self._host.conclude(write)

    def _evaluate(self) -> dict[str, Any] | None:
        try:
            result: Any = ray.get(self._evaluator.evaluate.remote())
        except RayError as error:
            raise ProcessLostError("the evaluator", cause_of(unwrapped(error))) from error
        return None if result is None else dict(result)
