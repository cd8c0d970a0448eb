"""A run on Ray: actors in placement groups. Ray carries no parameters."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from distbelief.errors import ProcessLostError, UsageError
from distbelief.observe.report import Report
from distbelief.runtime.local import model_spec
from distbelief.runtime.placement import (
    REPLICA,
    SHARD,
    Node,
    Placement,
    place,
    place_one,
    require_room,
)
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
from distbelief.runtime.world import ReplicaEnd
from distbelief.transport.client import ShardClient

START_S = 180.0
CALL_S = 60.0
CLOSE_S = 15.0
NODE_LABEL = "ray.io/node-id"

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
        self._groups: dict[tuple[str, int], PlacementGroup] = {}
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
            self._reserve()
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
        self.emit("replica_started", replica=replica, node=self._placements[REPLICA, slot].node_id)

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

    def _reserve(self) -> None:
        """A placement group for each shard and each replica, in time or with the reason why not."""
        config = self._config
        here = nodes()
        gpu = self._prepared.config.replica.device.startswith("cuda")
        placements = place(here, config.shards, config.replicas, gpu=gpu)
        for p in placements:
            self._groups[p.role, p.index] = _group(p)
        unplaced = [p for p in placements if p.node_id is None]
        if unplaced:
            self._say(f"waiting for room in the cluster for {len(unplaced)} processes more")
        waits = [self._groups[p.role, p.index].ready() for p in placements]
        if len(_ready(waits, len(waits), config.patience_s)) < len(waits):
            require_room(placements, here, config.patience_s)
            raise ProcessLostError("a node", "it had room for the run and has none any more")
        self._replicas_by_host = _count_by_host(placements, here)
        self._hosts = {node.node_id: node.host for node in here}
        self._placements = {(p.role, p.index): p for p in placements}

    def _start_actors(self) -> None:
        n_shards, prepared = self._config.shards, self._prepared
        shards = [self._actor(ShardActor, SHARD, i, threads=1) for i in range(n_shards)]
        self._coordinator = self._beside_driver(CoordinatorActor, threads=1)
        evaluator = self._beside_driver(EvaluatorActor, threads=1)
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
                node=self._placements[SHARD, e.shard].node_id,
            )
        self._get(ready, timeout_s=START_S)
        for i, actor in enumerate(shards):
            self._watched[actor.watch.remote()] = f"shard {i}"
        self._watched[self._coordinator.watch.remote()] = "the coordinator"
        self._watched[evaluator.watch.remote()] = "the evaluator"

    def _actor(self, kind: type[Any], role: str, index: int, *, threads: int) -> Handle:
        group = self._groups[role, index]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        bundle = dict(group.bundle_specs[0])
        return self._create(kind, strategy, bundle, threads)

    def _replica_actor(self, slot: int) -> Handle:
        placement = self._placements[REPLICA, slot]
        host = self._hosts.get(placement.node_id or "", "")
        neighbours = self._replicas_by_host.get(host, 1)
        cores = len(os.sched_getaffinity(0))
        threads = self._prepared.config.replica.threads or max(1, cores // neighbours)
        return self._actor(ReplicaActor, REPLICA, slot, threads=threads)

    def _beside_driver(self, kind: type[Any], *, threads: int) -> Handle:
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=True)
        return self._create(kind, strategy, {"CPU": 0.0}, threads)

    def _create(
        self, kind: type[Any], strategy: object, bundle: dict[str, float], threads: int
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
            self._move(slot)
            return ReplicaEnd(replica, str(cause), fatal=isinstance(cause, UsageError))
        return ReplicaEnd(replica, "")

    def _move(self, slot: int) -> None:
        """Reserves the slot anew if the node that it was on has died."""
        old = self._placements[REPLICA, slot]
        here = nodes()
        if old.node_id in {node.node_id for node in here}:
            return
        remove_placement_group(self._groups[REPLICA, slot])
        new = place_one(here, REPLICA, slot, old.bundle)
        self._placements[REPLICA, slot] = new
        self._groups[REPLICA, slot] = _group(new)

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
        for group in self._groups.values():
            remove_placement_group(group)


def _group(p: Placement) -> PlacementGroup:
    selector = None if p.node_id is None else [{NODE_LABEL: p.node_id}]
    group: PlacementGroup = placement_group([dict(p.bundle)], bundle_label_selector=selector)
    return group


def _count_by_host(placements: list[Placement], here: list[Node]) -> dict[str, int]:
    hosts = {node.node_id: node.host for node in here}
    counts: dict[str, int] = {}
    for p in placements:
        if p.role == REPLICA and p.node_id is not None:
            counts[hosts[p.node_id]] = counts.get(hosts[p.node_id], 0) + 1
    return counts


def _ready(refs: list[Ref], n: int, timeout_s: float) -> list[Ref]:
    ready, _ = ray.wait(refs, num_returns=n, timeout=timeout_s)
    return list(ready)


def _cause_of(ref: Ref) -> str:
    try:
        ray.get(ref)
    except RayError as error:
        return str(first_cause(error))
    return ""
