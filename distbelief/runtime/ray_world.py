"""A run on Ray: actors in placement groups. Ray carries no parameters."""

from __future__ import annotations

import dataclasses
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distbelief.errors import ProcessLostError
from distbelief.observe.report import Report
from distbelief.runtime.coordinator_host import HostSpec
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
from distbelief.runtime.ray_cluster import Cluster, connected, nodes
from distbelief.runtime.ray_groups import SLICE_S, Groups
from distbelief.runtime.supervisor import Stop
from distbelief.runtime.worker import ModelSpec, Threads
from distbelief.runtime.world import ReplicaEnd
from distbelief.transport.client import ShardClient

START_S = 180.0
SLOW_NBYTES_PER_S = 10e6
"""What a slow storage takes or gives."""

CALL_S = 60.0
CLOSE_S = 15.0

# What Ray hands out for an actor of ours has no type that a checker could follow.
Handle = Any
Ref = Any


class RayWorld:
    """Satisfies :class:`~distbelief.runtime.world.World` with actors."""

    def __init__(
        self, prepared: Prepared, cluster: Cluster, say: Callable[[str], None], stop: Stop
    ) -> None:
        self._prepared = prepared
        self._stop = stop
        self._cluster = cluster
        self._say = say
        self._config = prepared.config.cluster
        self._token = secrets.token_hex(16)
        self._spec = ModelSpec.of(prepared)
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
            where = self._cluster.address
            self._say("starting Ray" if where is None else f"joining the Ray cluster at {where}")
            stack.enter_context(
                connected(self._cluster, n_shards=config.shards, n_replicas=config.replicas)
            )
            self._stop.catch()
            self._say(f"starting {config.shards} shards and {config.replicas} replicas")
            stack.callback(self._clear)
            gpu = self._decide_device()
            self._groups.reserve(
                config.shards,
                config.replicas,
                gpu=gpu,
                patience_s=config.patience_s,
                say=self._say,
                check=self._check_stop,
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
        self.emit("replica_started", replica=replica)

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        """See :class:`World`."""
        refs = [*self._watched, *self._replicas]
        if not _ready(refs, 1, timeout_s):
            return []
        ready = _ready(refs, len(refs), 0.0)
        for ref in ready:
            if ref in self._watched:
                what = self._watched.pop(ref)
                raise ProcessLostError(what, _cause_of(ref) or "it ended by itself")
        return [self._end_of(ref) for ref in ready]

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

    def conclude(self, model_file: str) -> Report:
        """See :class:`World`."""
        report: Report = self._get(self._coordinator.conclude.remote(model_file), timeout_s=None)
        return report

    def _check_stop(self) -> None:
        if self._stop.event.is_set():
            raise KeyboardInterrupt

    def _decide_device(self) -> bool:
        """Whether replicas take a GPU each; without being told, if there is one for each."""
        spec, device = self._spec, self._spec.config.replica.device
        if device == "auto":
            gpus = sum(node.total.get("GPU", 0.0) for node in nodes())
            device = "cuda" if gpus >= self._config.replicas else "cpu"
            replica = dataclasses.replace(spec.config.replica, device=device)
            config = dataclasses.replace(spec.config, replica=replica)
            self._spec = dataclasses.replace(spec, config=config)
        return device.startswith("cuda")

    def _start_actors(self) -> None:
        n_shards, prepared = self._config.shards, self._prepared
        shards = [self._actor(ShardActor, SHARD, i, Threads(1)) for i in range(n_shards)]
        self._coordinator = self._beside_driver(CoordinatorActor)
        evaluator = self._beside_driver(EvaluatorActor)
        # Replicas begin to import while the shards do.
        self._free_slots = list(range(self._config.replicas))
        self._spares = {slot: self._replica_actor(slot) for slot in self._free_slots}
        self._endpoints = self._await_start(
            [
                actor.start.remote(prepared.shard_spec(i), self._token, prepared.probe)
                for i, actor in enumerate(shards)
            ]
        )
        ready = evaluator.start.remote(self._spec, self._endpoints, self._token)
        if prepared.resumed is None:
            self._load()
        following = self._coordinator.start.remote(
            HostSpec.of(prepared), self._endpoints, self._token, evaluator
        )
        self._await_start([following])
        for e in self._endpoints:
            self.emit(
                "shard_started",
                shard=e.shard,
                incarnation=e.incarnation,
                address=e.address,
                node=e.node,
            )
        self._await_start([ready])
        for i, actor in enumerate(shards):
            self._watched[actor.watch.remote()] = f"shard {i}"
        self._watched[self._coordinator.watch.remote()] = "the coordinator"
        self._watched[evaluator.watch.remote()] = "the evaluator"

    def _load(self) -> None:
        """Gives the shards the initial values."""
        for e in self._endpoints:
            with ShardClient(
                e.shard, e.address, self._token, timeout_s=self._config.rpc_timeout_s
            ) as client:
                client.load(self._prepared.initial[e.begin : e.end])

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
            return ReplicaEnd(replica, cause)
        return ReplicaEnd(replica, None)

    def _get(self, ref: Ref, timeout_s: float | None = CALL_S) -> Any:
        """The coordinator's answer."""
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError as error:
            cause = f"no answer within {timeout_s:g} s"
            raise ProcessLostError("the coordinator", cause) from error
        except RayError as error:
            raise first_cause(error) from error

    def _await_start(self, refs: list[Ref]) -> list[Any]:
        """The answers of actors that start, unless the user stops the run meanwhile."""
        # Large shards take their time to come from a snapshot, and to be written into the first.
        allowed_s = START_S + 16 * self._prepared.layout.size / SLOW_NBYTES_PER_S
        give_up_at = time.monotonic() + allowed_s
        while len(_ready(refs, len(refs), SLICE_S)) < len(refs):
            self._check_stop()
            if time.monotonic() > give_up_at:
                cause = f"it did not start within {allowed_s:.0f} s"
                raise ProcessLostError("a shard, the coordinator or the evaluator", cause)
        try:
            return list(ray.get(refs))
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
