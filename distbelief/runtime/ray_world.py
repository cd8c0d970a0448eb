"""A run on Ray: actors in placement groups. Ray carries no parameters."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distbelief.errors import ProcessLostError, UsageError
from distbelief.observe.report import Report
from distbelief.runtime.local import model_spec
from distbelief.runtime.placement import REPLICA, SHARD
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.ray_actors import (
    CoordinatorActor,
    Endpoint,
    EvaluatorActor,
    ReplicaActor,
    ShardActor,
    first_cause,
)
from distbelief.runtime.ray_cluster import Cluster, connected
from distbelief.runtime.ray_groups import Groups
from distbelief.runtime.worker import Threads
from distbelief.runtime.world import ReplicaEnd
from distbelief.transport.client import ShardClient

START_S = 180.0
CALL_S = 60.0
CLOSE_S = 15.0

# What Ray hands out for an actor of ours has no type that a checker could follow.
Handle = Any
Ref = Any


class RayWorld:
    """Satisfies :class:`~distbelief.runtime.world.World` with actors."""

    def __init__(self, prepared: Prepared, cluster: Cluster, say: Callable[[str], None]) -> None:
        self._prepared = prepared
        self._cluster = cluster
        self._say = say
        self._config = prepared.config.cluster
        self._token = secrets.token_hex(16)
        self._spec = model_spec(prepared)
        self._stack = ExitStack()
        self._groups = Groups()
        self._actors: list[Handle] = []
        self._watched: dict[Ref, str] = {}
        self._replicas: dict[Ref, int] = {}
        self._replica_actors: dict[int, Handle] = {}
        self._free_slots: list[int] = []
        self._slots: dict[int, int] = {}
        self._spares: dict[int, Handle] = {}
        self._endpoints: list[Endpoint] = []

    def __enter__(self) -> RayWorld:
        config = self._config
        with ExitStack() as stack:
            stack.enter_context(
                connected(self._cluster, n_shards=config.shards, n_replicas=config.replicas)
            )
            stack.callback(self._clear)
            self._groups.reserve(
                config.shards,
                config.replicas,
                gpu=self._prepared.config.replica.device.startswith("cuda"),
                patience_s=config.patience_s,
                say=self._say,
            )
            self._start_actors()
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
        slot = self._free_slots.pop(0)
        actor = self._spares.pop(slot, None)
        if actor is None:
            actor = self._replica_actor(slot)
        self._slots[replica] = slot
        self._replica_actors[replica] = actor
        ref = actor.run.remote(self._spec, replica, self._endpoints, self._token, self._coordinator)
        self._replicas[ref] = replica
        self.emit("replica_started", replica=replica, node=self._groups.node(REPLICA, slot))

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        """See :class:`World`."""
        refs = [*self._watched, *self._replicas]
        ends = []
        for ref in _ready(refs, 1, timeout_s):
            if ref in self._watched:
                what = self._watched.pop(ref)
                raise ProcessLostError(what, _cause_of(ref) or "it ended by itself")
            ends.append(self._end_of(ref))
        return ends

    def report(self) -> Report:
        """See :class:`World`."""
        report: Report = self._get(self._coordinator.run_report.remote())
        return report

    def replica_lost(self, replica: int, cause: str) -> int:
        """See :class:`World`."""
        n_items: int = self._get(self._coordinator.replica_lost.remote(replica, cause))
        return n_items

    def emit(self, kind: str, **fields: Any) -> None:
        """See :class:`World`."""
        self._get(self._coordinator.emit.remote(kind, fields))

    def stop(self) -> None:
        """See :class:`World`."""
        self._get(self._coordinator.stop.remote())

    def conclude(self, model_file: Path) -> Report:
        """See :class:`World`."""
        report: Report = self._get(self._coordinator.conclude.remote(model_file), timeout_s=None)
        return report

    def _start_actors(self) -> None:
        n_shards, prepared = self._config.shards, self._prepared
        shards = [self._actor(ShardActor, SHARD, i, Threads(1)) for i in range(n_shards)]
        self._coordinator = self._beside_driver(CoordinatorActor)
        evaluator = self._beside_driver(EvaluatorActor)
        # Replicas begin to import while the shards do.
        self._free_slots = list(range(self._config.replicas))
        self._spares = {slot: self._replica_actor(slot) for slot in self._free_slots}
        self._endpoints = self._get(
            [
                actor.start.remote(prepared.shard_spec(i), self._token)
                for i, actor in enumerate(shards)
            ],
            timeout_s=START_S,
        )
        ready = evaluator.start.remote(self._spec, self._endpoints, self._token)
        for e in self._endpoints:
            with ShardClient(
                e.shard, e.address, self._token, timeout_s=self._config.rpc_timeout_s
            ) as client:
                client.load(prepared.initial[e.begin : e.end])
        self._get(
            self._coordinator.start.remote(
                prepared.schedule,
                self._endpoints,
                self._token,
                self._config,
                evaluator,
                prepared.started_at,
                prepared.run_dir,
            ),
            timeout_s=START_S,
        )
        for e in self._endpoints:
            self.emit(
                "shard_started",
                shard=e.shard,
                incarnation=e.incarnation,
                address=e.address,
                node=self._groups.node(SHARD, e.shard),
            )
        self._get(ready, timeout_s=START_S)
        for i, actor in enumerate(shards):
            self._watched[actor.watch.remote()] = f"shard {i}"
        self._watched[self._coordinator.watch.remote()] = "the coordinator"
        self._watched[evaluator.watch.remote()] = "the evaluator"

    def _actor(self, kind: type[Any], role: str, index: int, threads: Threads) -> Handle:
        bundle = self._groups.bundle(role, index)
        return self._create(kind, self._groups.strategy(role, index), bundle, threads)

    def _replica_actor(self, slot: int) -> Handle:
        neighbours = self._groups.neighbours(slot)
        threads = Threads(self._prepared.config.replica.threads, neighbours)
        return self._actor(ReplicaActor, REPLICA, slot, threads)

    def _beside_driver(self, kind: type[Any]) -> Handle:
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=True)
        return self._create(kind, strategy, {}, Threads(1))

    def _create(
        self, kind: type[Any], strategy: object, bundle: dict[str, float], threads: Threads
    ) -> Handle:
        cpus, gpus = bundle.pop("CPU", 0.0), bundle.pop("GPU", 0.0)
        remote: Any = ray.remote(kind)
        actor: Handle = remote.options(
            num_cpus=cpus,
            num_gpus=gpus,
            resources=bundle,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self._config.replicas + 8,
            scheduling_strategy=strategy,
        ).remote(tuple(sys.path), threads)
        self._actors.append(actor)
        return actor

    def _end_of(self, ref: Ref) -> ReplicaEnd:
        replica = self._replicas.pop(ref)
        slot = self._slots.pop(replica)
        actor = self._replica_actors.pop(replica)
        self._actors.remove(actor)
        ray.kill(actor)
        self._free_slots.append(slot)
        try:
            ray.get(ref)
        except RayError as error:
            cause = first_cause(error)
            self._groups.renew(REPLICA, slot)
            return ReplicaEnd(replica, str(cause), fatal=isinstance(cause, UsageError))
        return ReplicaEnd(replica, "")

    def _get(self, ref: Any, timeout_s: float | None = CALL_S) -> Any:
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError as error:
            raise ProcessLostError("a process", f"no answer within {timeout_s:g} s") from error
        except RayError as error:
            raise first_cause(error) from error

    def _clear(self) -> None:
        """Ends every actor, first by asking, and gives the room back."""
        asked = [actor.close.remote() for actor in self._actors]
        if asked:
            _ready(asked, len(asked), CLOSE_S)
        for actor in self._actors:
            ray.kill(actor)
        self._groups.clear()


def _ready(refs: list[Ref], n: int, timeout_s: float) -> list[Ref]:
    ready, _ = ray.wait(refs, num_returns=n, timeout=timeout_s)
    return list(ready)


def _cause_of(ref: Ref) -> str:
    try:
        ray.get(ref)
    except RayError as error:
        return str(first_cause(error))
    return ""
