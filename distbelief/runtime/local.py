"""A run inside one process, without Ray: replicas and shards are threads, stages processes.

For tests, notebooks, and machines that have no Ray.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch

from distbelief.errors import ProcessLostError, as_distbelief_error
from distbelief.faults.points import InjectedError
from distbelief.observe.report import Report
from distbelief.runtime.endpoints import Access, Connected, ports_through
from distbelief.runtime.evaluator import Evaluator
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.local_office import Office
from distbelief.runtime.local_shards import LocalShards
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.seat import Seat
from distbelief.runtime.stage_processes import StageProcesses, StageTask
from distbelief.runtime.worker import ModelSpec, Threads, run_replica
from distbelief.runtime.world import Happening, Post, ProcessEnd, ProcessUp, ReplicaEnd
from distbelief.server.spec import ShardSpec
from distbelief.services import ParameterService, ShardService
from distbelief.serving import Endpoint, Serving, write_serving
from distbelief.transport.routes import FileDirectory


class LocalWorld:
    """Satisfies :class:`~distbelief.runtime.world.World` with threads.

    Args:
        prepared: The run.
        transport: ``direct`` calls the shards; ``grpc`` reaches them through sockets.
        n_loaders: Loader processes of each replica; by default as configured, 0 for threads.
        link: Makes what a replica that is a thread reaches a shard by, out of the shard's number
            and the plain way there; by default that way itself.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        transport: Literal["direct", "grpc"] = "direct",
        n_loaders: int | None = None,
        link: Callable[[int, ShardService], ParameterService] | None = None,
    ) -> None:
        self._prepared = prepared
        self._link = link
        config = prepared.config
        staged = any(slot.stages > 1 for slot in config.slots)
        self._token = secrets.token_hex(16)
        # Stages are other processes; what counts their traffic is the server.
        by_grpc = staged or transport == "grpc"
        self._shards = LocalShards(config, self._token, by_grpc=by_grpc)
        self._n_loaders = config.data.loaders if n_loaders is None else n_loaders
        self._spec = ModelSpec.of(prepared)
        self._stack = ExitStack()
        self._stages: dict[int, StageProcesses] = {}
        self._free_slots = list(range(config.cluster.replicas))
        self._threads: dict[int, threading.Thread] = {}
        self._happened: list[Happening] = []
        self._starting_coordinator: threading.Thread | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> LocalWorld:
        prepared, config = self._prepared, self._prepared.config
        with ExitStack() as stack:
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            n_processes = sum(slot.stages for slot in config.slots)
            self._threads_here = Threads(config.replica.threads, neighbours=n_processes)
            torch.set_num_threads(self._threads_here.here())
            stack.enter_context(self._shards)
            specs = [prepared.shard_spec(index) for index in range(config.cluster.shards)]
            endpoints = tuple(self._shards.start(spec) for spec in specs)
            self._serving = Serving(number=1, run=prepared.incarnation, shards=endpoints)
            write_serving(prepared.storage, self._serving)
            self._directory = stack.enter_context(
                FileDirectory(prepared.storage, self._serving, self._shards.client)
            )
            if prepared.resumed is None:
                for e in endpoints:
                    with self.shard_at(e) as shard:
                        shard.load(prepared.initial[e.begin : e.end])
            self._evaluator = stack.enter_context(Evaluator(self._spec, n_loaders=self._n_loaders))
            self._office = stack.enter_context(
                Office(config.cluster.patience_s, self._connected, self._evaluate)
            )
            self._office.start(HostSpec.of(prepared))
            for e in endpoints:
                self._tell_started(e)
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

    @property
    def serving(self) -> Serving:
        """See :class:`World`."""
        return self._serving

    def start_replica(self, replica: int) -> None:
        """See :class:`World`."""
        seat = Seat(replica, self._free_slots.pop(0))
        thread = threading.Thread(
            target=self._run_replica, args=(seat,), name=f"replica-{replica}", daemon=True
        )
        self._threads[replica] = thread
        self.emit("replica_started", replica=replica)
        thread.start()

    def start_shard(self, spec: ShardSpec) -> None:
        """See :class:`World`."""
        post = Post("shard", spec.index, spec.incarnation)
        try:
            self._tell(ProcessUp(post, self._shards.start(spec)))
        except Exception as error:  # whatever keeps it from starting is its end
            self._tell(ProcessEnd(post, as_distbelief_error(error)))

    def start_coordinator(self, spec: HostSpec) -> None:
        """See :class:`World`; in a thread, since it may have to wait for a shard."""

        def start() -> None:
            post = Post("coordinator", 0, spec.start)
            try:
                self._office.start(spec)
            except Exception as error:  # whatever keeps it from starting is its end
                self._tell(ProcessEnd(post, as_distbelief_error(error)))
            else:
                self._tell(ProcessUp(post, about=_here()))

        thread = threading.Thread(target=start, name="start-coordinator", daemon=True)
        self._starting_coordinator = thread
        thread.start()

    def start_evaluator(self, start: int) -> None:
        """See :class:`World`; here it does not die by itself."""
        raise AssertionError("an evaluator in this process has not ended")

    def take_serving(self, serving: Serving) -> None:
        """See :class:`World`."""
        self._serving = serving

    def dismiss(self, post: Post) -> None:
        """See :class:`World`."""
        if post.role == "shard":
            self._shards.end(post.number, post.start)
        elif post.role == "coordinator":
            self._office.end(post.start)

    def shard_at(self, endpoint: Endpoint) -> AbstractContextManager[ShardService]:
        """See :class:`World`."""
        return self._shards.at(endpoint)

    def wait(self, timeout_s: float) -> list[Happening]:
        """See :class:`World`."""
        with self._changed:
            self._changed.wait_for(lambda: self._happened, timeout_s)
            taken, self._happened = self._happened, []
        for shard, incarnation, cause in self._shards.lost():
            lost = ProcessLostError(f"shard {shard}", cause)
            taken.append(ProcessEnd(Post("shard", shard, incarnation), lost))
        if self._office.dead:
            start, cause = self._office.dead
            lost = ProcessLostError("the coordinator", cause)
            taken.append(ProcessEnd(Post("coordinator", 0, start), lost))
        return taken

    def report(self) -> Report | None:
        """See :class:`World`."""
        host = self._office.host
        return None if host is None else host.run_report()

    def replica_lost(self, replica: int, cause: str) -> int | None:
        """See :class:`World`."""
        host = self._office.host
        return None if host is None else host.replica_lost(replica, cause)

    def emit(self, kind: str, **fields: Any) -> None:
        """See :class:`World`."""
        self._office.emit(kind, **fields)

    def stop(self) -> None:
        """See :class:`World`."""
        if (host := self._office.host) is not None:
            host.stop()
        for stages in list(self._stages.values()):
            stages.stop()

    def conclude(self, model_file: str, meanwhile: Callable[[], object]) -> Report:
        """See :class:`World`; nothing dies meanwhile that others could replace."""
        host = self._office.host
        if host is None:
            raise ProcessLostError("the coordinator", "it died when the run was to be concluded")
        with self._connected() as connected:
            return host.conclude(lambda: self._evaluator.write(connected.ports, model_file))

    def _connected(self) -> AbstractContextManager[Connected]:
        """The shards wherever they serve, for those in this process."""
        patience_s = self._prepared.config.cluster.patience_s
        return nullcontext(ports_through(self._directory, self._serving, patience_s=patience_s))

    def _evaluate(self) -> dict[str, Any] | None:
        with self._connected() as connected:
            return self._evaluator.evaluate(connected.ports)

    def _tell_started(self, e: Endpoint) -> None:
        self.emit(
            "shard_started",
            shard=e.shard,
            incarnation=e.incarnation,
            role="primary",
            address=e.address,
            **_here(),
        )

    def _tell(self, what: Happening) -> None:
        with self._changed:
            self._happened.append(what)
            self._changed.notify_all()

    def _run_replica(self, seat: Seat) -> None:
        end = ReplicaEnd(seat.replica, None)
        try:
            if self._prepared.config.slots[seat.slot].stages > 1:
                self._run_stages(seat)
            else:
                connected = ports_through(self._directory, self._serving)
                ports = [
                    replace(port, service=self._link(port.shard, shard)) if self._link else port
                    for port, shard in zip(connected.ports, connected.shards, strict=True)
                ]
                run_replica(self._spec, seat, ports, self._office, n_loaders=self._n_loaders)
        except InjectedError as death:
            end = ReplicaEnd(seat.replica, ProcessLostError("its process", f"it died at {death}"))
        except Exception as error:
            end = ReplicaEnd(seat.replica, as_distbelief_error(error))
        self._free_slots.append(seat.slot)
        self._tell(end)

    def _run_stages(self, seat: Seat) -> None:
        slot = self._prepared.config.slots[seat.slot]
        threads = slot.threads or self._threads_here.here()
        task = StageTask(
            spec=self._spec,
            seat=seat,
            access=Access(storage=self._prepared.storage, serving=self._serving, token=self._token),
            n_threads=threads,
            n_loaders=self._n_loaders,
        )
        tasks = [replace(task, seat=replace(seat, stage=k)) for k in range(slot.stages)]
        with StageProcesses(tasks) as stages:
            self._stages[seat.replica] = stages
            for stage, pid in enumerate(stages.pids):
                self.emit("replica_placed", replica=seat.replica, stage=stage, pid=pid)
            stages.run(self._office)

    def _join_replicas(self) -> None:
        self._office.close()
        if self._starting_coordinator is not None:
            self._starting_coordinator.join()
        self._shards.abandon()  # whoever waits for a shard that is to end waits in vain
        for thread in self._threads.values():
            thread.join()


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}
