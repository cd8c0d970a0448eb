"""The coordinator's process: follows the shards, keeps the record, has the averages evaluated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from distbelief.coordinator.coordinator import Coordinator
from distbelief.coordinator.snapshots import Pace
from distbelief.errors import (
    ConfigError,
    DataError,
    RunError,
    TransportError,
)
from distbelief.faults.points import Injector
from distbelief.observe.report import Report
from distbelief.runtime.asides import Asides
from distbelief.runtime.ending import Ending
from distbelief.runtime.epochs import Epochs, told_epochs
from distbelief.runtime.evaluations import Evaluate, Evaluations
from distbelief.runtime.gauges import Gauges
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.recorder import Recorder
from distbelief.runtime.regular_snapshots import RegularSnapshots
from distbelief.runtime.snapshots import Progressed, Snapshots, manifests
from distbelief.runtime.waste import Waste
from distbelief.services import ShardService
from distbelief.types import Orders, ReplicaReport, ShardFile

POLL_S = 0.2
PROGRESS_EVENT_S = 5.0
"""Seconds between two progress events; a run's first minutes are told in more detail."""

AWAY_S = 900.0
"""A shard that has been away for so long, however often it was started anew, will not come back."""

FENCE_S = 1.0
"""How often it makes sure that no other coordinator has taken its place."""


class CoordinatorHost:
    """Hosts a :class:`Coordinator`: threads that poll the shards, evaluate and take snapshots.

    A context manager, which has the first snapshot taken before it is entered. :meth:`report` and
    the others may be called by any thread. An error of a thread is the ``failure`` of the next
    report of the run.
    """

    def __init__(self, spec: HostSpec, shards: Sequence[ShardService], evaluate: Evaluate) -> None:
        cluster, resumed = spec.config.cluster, spec.resumed
        self._spec = spec
        self._plan = spec.schedule.plan
        self._coordinator = Coordinator(
            spec.schedule,
            len(shards),
            lease_s=cluster.lease_s,
            losses=resumed.losses if resumed else None,
            first_lease=1 + ((spec.incarnation << 16) + spec.start << 32),
            awaited=spec.replicas,
            lost=spec.lost,
        )
        self._injector = Injector(spec.faults, "coordinator", spec.start)
        self._shards = tuple(shards)
        self._patience_s = cluster.patience_s
        self._started_at = spec.started_at
        self._record = Recorder(spec.storage, spec.started_at, tensorboard=spec.config.tensorboard)
        config = spec.config.snapshots
        self._snapshots = RegularSnapshots(
            Snapshots(
                spec.storage,
                shards,
                layout=spec.layout,
                keep=config.keep_snapshots,
                pause_s=config.snapshot_pause_s,
                emit=self._record.emit,
                abandoned=spec.abandoned,
                incarnation=spec.incarnation,
                coordinator=spec.start,
                injector=self._injector,
            ),
            Pace(config.snapshot_every or self._plan.n_examples, config.snapshot_s),
            self._progressed,
            self._record.emit,
        )
        self._waste = Waste(self._plan)
        self._gauges = Gauges(self._plan, len(shards))
        validation = resumed.validation if resumed else None
        self._evaluations = Evaluations(evaluate, validation, self._record.emit)
        self._closing = threading.Event()
        self._ending = Ending(
            self._injector, self._closing, lambda why: self._record.emit("failure", cause=why)
        )
        self._epochs = Epochs(
            self._plan.n_epochs, self._coordinator.status, self._evaluations, self._record
        )
        self._joined: set[int] = set(spec.replicas)
        self._dismissed: set[int] = set()
        self._forgotten: dict[tuple[int, int], int] = {}
        self._looks = 0
        self._asides = Asides(shards, self._record.emit, spec.names_of)
        self._threads = {
            name: threading.Thread(
                target=self._ending.guarded, args=(work,), name=name, daemon=True
            )
            for name, work in (
                ("coordinator", self._follow),
                ("evaluation", lambda: self._epochs.evaluate(self._closing)),
                ("snapshots", self._take_snapshots),
            )
        }

    def __enter__(self) -> CoordinatorHost:
        try:
            self._begin()
        except BaseException:
            self._record.close()
            raise
        for thread in self._threads.values():
            thread.start()
        return self

    def _begin(self) -> None:
        """A first look at the shards, and a first snapshot."""
        spec, resumed = self._spec, self._spec.resumed
        told = [spec.epochs_told, *(told_epochs(spec.storage) if spec.start > 1 else ())]
        self._look(patiently=spec.start > 1)  # a shard may be away just now
        self._record.staleness_told = self._coordinator.status().staleness
        self._epochs.begin(told)
        if spec.start > 1:
            found, _ = manifests(spec.storage)
            usable = [m for m in found if m.number not in spec.abandoned]
            resumed = usable[-1] if usable else resumed
        if resumed is not None:
            self._snapshots.note(resumed)
            return
        try:
            self._snapshots.take("start")
        except (RunError, OSError) as error:
            raise ConfigError("run_dir", f"the first snapshot failed: {error}") from error

    def _look(self, *, patiently: bool) -> None:
        """Observes the shards; with patience, one that is away is waited for."""
        give_up_at = time.monotonic() + (self._patience_s if patiently else 0.0)
        while True:
            try:
                return self.observe()
            except TransportError:
                if time.monotonic() > give_up_at or self._ending.dead:
                    raise
                time.sleep(POLL_S)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_threads()
        self._record.close()

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`."""
        self._ending.require_alive("before_lease")
        orders = self._coordinator.report(report, at=time.time())
        for outcome in report.outcomes:
            self._waste.unreadable(outcome.unreadable)
        if report.replica not in self._joined:
            self._joined.add(report.replica)
            self._record.emit(
                "replica_joined",
                replica=report.replica,
                host=report.host,
                pid=report.pid,
                stages=report.stages,
            )
        if orders.dismissal and report.replica not in self._dismissed:
            self._dismissed.add(report.replica)
            self._record.emit("replica_dismissed", replica=report.replica, cause=orders.dismissal)
        return orders

    def replica_lost(self, replica: int, cause: str) -> int:
        """Takes note of a replica's death; returns how many of its items go to others."""
        items = self._coordinator.replica_lost(replica)
        self._record.emit("replica_lost", replica=replica, cause=cause, items_returned=items)
        return len(items)

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event."""
        self._record.emit(kind, **fields)
        if kind == "replica_started":  # its number must not be given again after a crash
            with suppress(OSError):  # which the record's trouble tells
                self._record.sync()

    def stop(self) -> None:
        """Orders every replica to end."""
        self._coordinator.stop()

    def observe(self) -> None:
        """Asks every shard how it stands, now."""
        asked_at = self._coordinator.now()
        states = [shard.state() for shard in self._shards]
        self._coordinator.observe(states, asked_at)
        self._looks += 1
        for loss in self._coordinator.take_forgotten():
            self._forgotten[loss.shard, loss.incarnation] = loss.items
            self._record.emit(
                "shard_forgot",
                shard=loss.shard,
                incarnation=loss.incarnation,
                items=loss.items,
                from_clock=loss.clock_before,
                to_clock=loss.clock_after,
            )
        seconds = time.time() - self._started_at
        examples = self._coordinator.status().examples_applied
        self._gauges.note(seconds, examples, states)

    def run_report(self) -> Report:
        """How the run stands."""
        return self._gauges.report(
            self._coordinator.status(),
            elapsed_s=time.time() - self._started_at,
            failure=self._ending.failure or self._record.failure,
            snapshot=self._snapshots.newest,
            validation=self._evaluations.newest,
            run_dir=self._spec.storage.url,
            forgotten=self._forgotten,
            trouble=self._record.trouble,
            looks=self._looks,
        )

    def conclude(self, write_model: Callable[[], None]) -> Report:
        """After the last replica: a last look at the shards, the weights, the last evaluation."""
        self._closing.set()
        self._join("coordinator", "snapshots")
        self._look(patiently=True)
        # Before an evaluation that is at work has ended: a spot machine may go any moment.
        self._snapshots.try_one("end")
        self._end_threads()
        self._epochs.note()
        self._waste.check(self._coordinator.status())
        write_model()
        if self._coordinator.status().finished:
            self._epochs.evaluate_after(self._epochs.told)
        self._record.progress(self.run_report())
        return self.run_report()

    def _end_threads(self) -> None:
        self._closing.set()
        self._join(*self._threads)
        self._record.outcomes(self._coordinator.take_outcomes())

    def _join(self, *names: str) -> None:
        for name in names:
            if self._threads[name].ident is not None:  # else it never began
                self._threads[name].join()

    @property
    def dead(self) -> str:
        """Why this coordinator is of no use any more, or empty; another can take its place."""
        return self._ending.dead

    def _follow(self) -> None:
        answered_at = told_at = fenced_at = time.monotonic()
        while not self._closing.wait(POLL_S):
            if time.monotonic() - fenced_at > FENCE_S:
                with suppress(OSError, DataError):  # the next look is near
                    self._snapshots.require_current()
                fenced_at = time.monotonic()
            try:
                self._injector.at("before_observe")
                self.observe()
                self._injector.at("after_observe")
                self._asides.tell(self._coordinator.take_set_aside())
                if not self._coordinator.n_owed:  # else one shard knows less than another
                    self._waste.check(self._coordinator.status())
                answered_at = time.monotonic()
            except TransportError:
                if time.monotonic() - answered_at > AWAY_S:
                    raise
                continue
            self._record.outcomes(self._coordinator.take_outcomes())
            self._epochs.note()
            if time.monotonic() - told_at >= _progress_event_s(time.time() - self._started_at):
                told_at = time.monotonic()
                self._record.progress(self.run_report())

    def _take_snapshots(self) -> None:
        self._snapshots.run(
            lambda: self._coordinator.status().examples_applied,
            self._closing,
            n_owed=lambda: self._coordinator.n_owed,
        )

    def _progressed(self, files: Sequence[ShardFile]) -> Progressed:
        self._record.sync()  # what happened before it is as durable as the snapshot
        return Progressed(
            examples_applied=self._coordinator.examples_of([file.state for file in files]),
            elapsed_s=time.time() - self._started_at,
            losses=self._coordinator.status().losses,
            validation=self._evaluations.newest,
        )


def _progress_event_s(elapsed_s: float) -> float:
    return min(PROGRESS_EVENT_S, max(1.0, elapsed_s / 60))
