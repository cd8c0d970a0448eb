"""A run on Ray: actors in placement groups. Ray carries no parameters."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from distbelief.observe.report import Report
from distbelief.runtime.endpoints import Access
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.placement import SHARD, decide_devices
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.ray_actors import (
    EvaluatorActor,
    Handle,
    Ref,
    ShardActor,
    node_address,
)
from distbelief.runtime.ray_cluster import Cluster, connected, nodes
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.ray_groups import SLICE_S, Groups
from distbelief.runtime.ray_places import Places
from distbelief.runtime.ray_posts import Posts
from distbelief.runtime.ray_present import PresentCoordinator
from distbelief.runtime.ray_replicas import Replicas
from distbelief.runtime.ray_silence import Silence
from distbelief.runtime.ray_staff import Staff, ready
from distbelief.runtime.shunned import Shunned
from distbelief.runtime.signals import Stop
from distbelief.runtime.worker import ModelSpec, Threads
from distbelief.runtime.world import Happening, Post, ProcessEnd, ProcessUp
from distbelief.server.spec import ShardSpec
from distbelief.services import ShardService
from distbelief.serving import Endpoint, Serving, write_serving
from distbelief.transport.pulse import PulseServer
from distbelief.transport.security import Tls

START_S = 180.0
SLOW_NBYTES_PER_S = 10e6
"""What a slow storage takes or gives."""

SHARD_CALL_S = 5.0
"""Deadline of what the supervisor asks of a shard, but for feeding a twin."""


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
        self._key = f"distbelief-{secrets.token_hex(4)}"
        self._spec = ModelSpec.of(prepared)
        self._stack = ExitStack()
        self._n_stages = sum(slot.stages for slot in prepared.config.slots)
        self._n_places = self._config.shards * self._config.shard_replication
        self._groups = Groups()
        # The coordinator hears all stages at once.
        self._staff = Staff(self._groups, max_concurrency=self._n_stages + 8)
        self._posts = Posts(self._staff)
        self._shunned = Shunned()
        copies = self._config.shard_replication
        self._places = Places(self._groups, self._config.shards, copies, self._shunned)
        self._access = Access(
            storage=prepared.storage,
            serving=Serving(number=0, run=prepared.incarnation, shards=()),
            token=self._token,
            key=self._key,
        )
        self._coordinator = PresentCoordinator(self._staff, self._key)
        self._evaluator: Handle = None

    def __enter__(self) -> RayWorld:
        config = self._config
        with ExitStack() as stack:
            where = self._cluster.address
            self._say("starting Ray" if where is None else f"joining the Ray cluster at {where}")
            stack.enter_context(
                connected(self._cluster, n_shards=self._n_places, n_stages=self._n_stages)
            )
            self._stop.catch()
            divided = self._n_stages > config.replicas
            stages = f" of {self._n_stages} stages in all" if divided else ""
            self._say(f"starting {config.shards} shards and {config.replicas} replicas{stages}")
            n_processes = self._n_stages + self._n_places + 4
            self._pulses = stack.enter_context(
                PulseServer(
                    self._token,
                    host=node_address(),
                    n_processes=n_processes,
                    tls=Tls.of(config),
                )
            )
            self._access = dataclasses.replace(self._access, supervisor=self._pulses.endpoint)
            stack.callback(self._groups.clear)
            stack.callback(self._staff.clear)
            n_gpus = sum(node.total.get("GPU", 0.0) for node in nodes())
            run = decide_devices(self._spec.config, n_gpus)
            self._spec = dataclasses.replace(self._spec, config=run)
            self._groups.reserve(
                config.shards,
                run.slots,
                copies=config.shard_replication,
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

    @property
    def serving(self) -> Serving:
        """See :class:`World`."""
        return self._access.serving

    def start_replica(self, replica: int) -> None:
        """See :class:`World`."""
        self._replicas.start(replica, self._access)
        self.emit("replica_started", replica=replica)

    def start_shard(self, spec: ShardSpec) -> None:
        """See :class:`World`."""
        self._start_shard(spec, self._places.another(spec.index, spec.incarnation))

    def start_coordinator(self, spec: HostSpec) -> None:
        """See :class:`World`."""
        self._coordinator.create(spec.start)
        self._follow(spec)

    def start_evaluator(self, start: int) -> None:
        """See :class:`World`."""
        self._evaluator = self._staff.beside_driver(EvaluatorActor)
        self._evaluate(start)
        self._coordinator.actor.use_evaluator.remote(self._evaluator)

    def take_serving(self, serving: Serving) -> None:
        """See :class:`World`."""
        self._access = dataclasses.replace(self._access, serving=serving)

    def dismiss(self, post: Post) -> None:
        """See :class:`World`."""
        self._silence.forget(post)
        self._posts.dismiss(post)
        if post.role == "shard":
            self._places.free(post.number, post.start)
        self._coordinator.note(post, up=False)

    def shard_at(self, endpoint: Endpoint) -> AbstractContextManager[ShardService]:
        """See :class:`World`."""
        return self._access.client(endpoint, self._prepared.config, timeout_s=SHARD_CALL_S)

    def wait(self, timeout_s: float) -> list[Happening]:
        """See :class:`World`."""
        refs = [*self._posts.calls, *self._replicas.calls]
        over = ready(refs, len(refs), 0.0) if ready(refs, 1, timeout_s) else []
        shunned = self._silence.shun_unreachable(over)
        happened: list[Happening] = [*self._replicas.ended(over, shunned=shunned)]
        happened += self._posts.happened(over)
        happened += self._silence.given_up()
        told: set[Post] = set()
        for what in list(happened):
            if isinstance(what, ProcessUp):
                self._note_up(what)
            elif isinstance(what, ProcessEnd):
                if what.post in told:  # it was silent, and then known to be dead
                    happened.remove(what)
                told.add(what.post)
                self._coordinator.note(what.post, up=False)
        return happened

    def report(self) -> Report | None:
        """See :class:`World`."""
        report: Report | None = self._coordinator.ask("run_report")
        return report

    def replica_lost(self, replica: int, cause: str) -> int | None:
        """See :class:`World`."""
        n_items: int | None = self._coordinator.ask("replica_lost", replica, cause)
        return n_items

    def emit(self, kind: str, **fields: Any) -> None:
        """See :class:`World`."""
        self._coordinator.emit(kind, fields)

    def stop(self) -> None:
        """See :class:`World`."""
        self._coordinator.ask("stop")

    def conclude(self, model_file: str, meanwhile: Callable[[], object]) -> Report:
        """See :class:`World`."""
        answer = self._coordinator.actor.conclude.remote(model_file)
        while not ready([answer], 1, SLICE_S):
            meanwhile()
        try:
            report: Report = ray.get(answer)
        except RayError as error:
            raise unwrapped(error, "the coordinator") from error
        return report

    def _check_stop(self) -> None:
        if self._stop.event.is_set():
            raise KeyboardInterrupt

    def _start_actors(self) -> None:
        prepared, n_shards = self._prepared, self._config.shards
        specs = [prepared.shard_spec(i) for i in range(n_shards)]
        for i, spec in enumerate(specs):
            self._start_shard(spec, self._places.first(i, spec.incarnation))
        self._coordinator.create(1)
        self._evaluator = self._staff.beside_driver(EvaluatorActor)
        self._replicas = Replicas(self._spec, self._groups, self._staff)
        self._silence = Silence(self._pulses, self._posts, self._replicas, self._shunned)
        self._coordinator.is_silent = self._silence.of_the_coordinator
        ups = self._await_ups(n_shards)
        endpoints = tuple(up.endpoint for up in ups if up.endpoint is not None)
        endpoints = tuple(sorted(endpoints, key=lambda e: e.shard))
        self.take_serving(Serving(number=1, run=prepared.incarnation, shards=endpoints))
        write_serving(prepared.storage, self.serving)
        if prepared.resumed is None:
            for e in endpoints:
                with self._access.client(e, prepared.config) as shard:
                    shard.load(prepared.initial[e.begin : e.end])
        self._evaluate(1)
        self._follow(HostSpec.of(prepared))
        for up in self._await_ups(2):
            self.emit(f"{up.post.role}_started", start=up.post.start, **(up.about or {}))
        for e in endpoints:
            self.emit(
                "shard_started",
                shard=e.shard,
                incarnation=e.incarnation,
                role="primary",
                address=e.address,
                node=e.node,
                host=e.host,
                pid=e.pid,
            )

    def _start_shard(self, spec: ShardSpec, place: int) -> None:
        actor = self._staff.in_group(ShardActor, SHARD, place, threads=Threads(1))
        starting = actor.start.remote(
            spec, self._prepared.config, self._access, self._prepared.probe
        )
        self._post(Post("shard", spec.index, spec.incarnation), actor, starting)

    def _follow(self, spec: HostSpec) -> None:
        starting = self._coordinator.begin(spec, self._access, self._evaluator)
        self._post(Post("coordinator", 0, spec.start), self._coordinator.actor, starting)

    def _evaluate(self, number: int) -> None:
        starting = self._evaluator.start.remote(self._spec, self._access, number)
        self._post(Post("evaluator", 0, number), self._evaluator, starting)

    def _post(self, post: Post, actor: Handle, starting: Ref) -> None:
        # Large shards take their time to come from a snapshot, and to be written into the first.
        allowed_s = START_S + 16 * self._prepared.layout.size / SLOW_NBYTES_PER_S
        self._posts.start(post, actor, starting, allowed_s)

    def _note_up(self, up: ProcessUp) -> None:
        node = up.endpoint.node if up.endpoint is not None else (up.about or {}).get("node", "")
        self._silence.note_node(up.post, str(node))
        self._coordinator.note(up.post, up=True)

    def _await_ups(self, n: int) -> list[ProcessUp]:
        """What starts, unless it fails or the user stops the run meanwhile."""
        ups: list[ProcessUp] = []
        while len(ups) < n:
            self._check_stop()
            refs = self._posts.calls
            for what in self._posts.happened(ready(refs, 1, SLICE_S)):
                if isinstance(what, ProcessEnd):
                    raise what.error
                self._note_up(what)
                ups.append(what)
        return ups
