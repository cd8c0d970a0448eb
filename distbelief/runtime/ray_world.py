"""A run on Ray: actors in placement groups. Ray carries no parameters."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from distbelief.errors import ProcessLostError
from distbelief.observe.report import Report
from distbelief.runtime.endpoints import Endpoint
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.placement import SHARD, decide_devices
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.ray_actors import (
    CoordinatorActor,
    EvaluatorActor,
    Handle,
    Ref,
    ShardActor,
    unwrapped,
)
from distbelief.runtime.ray_cluster import Cluster, connected, nodes
from distbelief.runtime.ray_groups import SLICE_S, Groups
from distbelief.runtime.ray_replicas import Replicas
from distbelief.runtime.ray_staff import Staff, ready
from distbelief.runtime.supervisor import Stop
from distbelief.runtime.worker import ModelSpec, Threads
from distbelief.runtime.world import ReplicaEnd
from distbelief.transport.client import ShardClient

START_S = 180.0
SLOW_NBYTES_PER_S = 10e6
"""What a slow storage takes or gives."""

CALL_S = 60.0


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
        self._n_stages = sum(slot.stages for slot in prepared.config.slots)
        self._groups = Groups()
        # The coordinator hears all stages at once.
        self._staff = Staff(self._groups, max_concurrency=self._n_stages + 8)
        self._watched: dict[Ref, str] = {}
        self._endpoints: list[Endpoint] = []

    def __enter__(self) -> RayWorld:
        config = self._config
        with ExitStack() as stack:
            where = self._cluster.address
            self._say("starting Ray" if where is None else f"joining the Ray cluster at {where}")
            stack.enter_context(
                connected(self._cluster, n_shards=config.shards, n_stages=self._n_stages)
            )
            self._stop.catch()
            divided = self._n_stages > config.replicas
            stages = f" of {self._n_stages} stages in all" if divided else ""
            self._say(f"starting {config.shards} shards and {config.replicas} replicas{stages}")
            stack.callback(self._groups.clear)
            stack.callback(self._staff.clear)
            n_gpus = sum(node.total.get("GPU", 0.0) for node in nodes())
            run = decide_devices(self._spec.config, n_gpus)
            self._spec = dataclasses.replace(self._spec, config=run)
            self._groups.reserve(
                config.shards,
                run.slots,
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
        self._replicas.start(replica, self._endpoints, self._token, self._coordinator)
        self.emit("replica_started", replica=replica)

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        """See :class:`World`."""
        refs = [*self._watched, *self._replicas.calls]
        if not ready(refs, 1, timeout_s):
            return []
        over = ready(refs, len(refs), 0.0)
        for ref in over:
            if ref in self._watched:
                what = self._watched.pop(ref)
                raise ProcessLostError(what, _cause_of(ref) or "it ended by itself")
        return self._replicas.ended(over)

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

    def _start_actors(self) -> None:
        n_shards, prepared = self._config.shards, self._prepared
        shards = [
            self._staff.in_group(ShardActor, SHARD, i, threads=Threads(1)) for i in range(n_shards)
        ]
        self._coordinator: Handle = self._staff.beside_driver(CoordinatorActor)
        evaluator = self._staff.beside_driver(EvaluatorActor)
        self._replicas = Replicas(self._spec, self._groups, self._staff)
        self._endpoints = self._await_start(
            [
                actor.start.remote(prepared.shard_spec(i), self._token, prepared.probe)
                for i, actor in enumerate(shards)
            ]
        )
        evaluating = evaluator.start.remote(self._spec, self._endpoints, self._token)
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
        self._await_start([evaluating])
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

    def _get(self, ref: Ref, timeout_s: float | None = CALL_S) -> Any:
        """The coordinator's answer."""
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError as error:
            cause = f"no answer within {timeout_s:g} s"
            raise ProcessLostError("the coordinator", cause) from error
        except RayError as error:
            raise unwrapped(error) from error

    def _await_start(self, refs: list[Ref]) -> list[Any]:
        """The answers of actors that start, unless the user stops the run meanwhile."""
        # Large shards take their time to come from a snapshot, and to be written into the first.
        allowed_s = START_S + 16 * self._prepared.layout.size / SLOW_NBYTES_PER_S
        give_up_at = time.monotonic() + allowed_s
        while len(ready(refs, len(refs), SLICE_S)) < len(refs):
            self._check_stop()
            if time.monotonic() > give_up_at:
                cause = f"it did not start within {allowed_s:.0f} s"
                raise ProcessLostError("a shard, the coordinator or the evaluator", cause)
        try:
            return list(ray.get(refs))
        except RayError as error:
            raise unwrapped(error) from error


def _cause_of(ref: Ref) -> str:
    try:
        ray.get(ref)
    except RayError as error:
        return str(unwrapped(error))
    return ""
