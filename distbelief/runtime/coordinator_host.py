"""The coordinator's process: follows the shards, keeps the record, has the averages evaluated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from distbelief.coordinator.coordinator import Coordinator
from distbelief.coordinator.snapshots import Pace
from distbelief.errors import (
    ConfigError,
    RunError,
    TransportError,
    as_distbelief_error,
)
from distbelief.observe.report import Report
from distbelief.runtime.evaluations import Evaluate, Evaluations
from distbelief.runtime.gauges import Gauges
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.recorder import Recorder
from distbelief.runtime.regular_snapshots import RegularSnapshots
from distbelief.runtime.snapshots import Snapshots, Standing
from distbelief.types import Orders, ReplicaReport, ShardFile, ShardService

POLL_S = 0.2
PROGRESS_EVENT_S = 5.0
"""Seconds between two progress events; a run's first minutes are told in more detail."""

MOST_SET_ASIDE, SHARE_SET_ASIDE = 3, 0.01
"""A run of which more than so many items, and more than this share, are set aside has failed."""

MOST_SKIPPED, SHARE_SKIPPED = 10, 0.001
"""Likewise of the images that could not be read."""

SHOWN_UNREADABLE = 10
"""So many of them are named."""


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
        )
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
            ),
            Pace(config.snapshot_every or self._plan.n_examples, config.snapshot_s),
            self._standing,
            self._record.emit,
        )
        self._unreadable: dict[str, None] = {}
        self._gauges = Gauges(self._plan, len(shards))
        validation = resumed.validation if resumed else None
        self._evaluations = Evaluations(evaluate, validation, self._record.emit)
        self._failure = ""
        self._closing = threading.Event()
        self._epochs_seen = 0
        self._joined: set[int] = set()
        self._untold: dict[int, str] = {}
        self._threads = {
            name: threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (
                ("coordinator", self._follow),
                ("evaluation", self._evaluate),
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
        self.observe()
        self._record.staleness_told = self._coordinator.status().staleness
        finished = self._coordinator.status().epochs_finished
        self._epochs_seen = min(finished, self._spec.epochs_told)
        resumed = self._spec.resumed
        if resumed is None:
            try:
                self._snapshots.take("start")
            except (RunError, OSError) as error:
                raise ConfigError("run_dir", f"the first snapshot failed: {error}") from error
        else:
            self._snapshots.note(resumed)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_threads()
        self._record.close()

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`."""
        orders = self._coordinator.report(report, at=time.time())
        for outcome in report.outcomes:
            for name in outcome.unreadable:
                if len(self._unreadable) < SHOWN_UNREADABLE:
                    self._unreadable[name] = None  # in each epoch it is skipped again
        if report.replica not in self._joined:
            self._joined.add(report.replica)
            self._record.emit(
                "replica_joined",
                replica=report.replica,
                host=report.host,
                pid=report.pid,
                stages=report.stages,
            )
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
            self._record.sync()

    def stop(self) -> None:
        """Orders every replica to end."""
        self._coordinator.stop()

    def observe(self) -> None:
        """Asks every shard how it stands, now."""
        asked_at = self._coordinator.now()
        states = [shard.state() for shard in self._shards]
        self._coordinator.observe(states, asked_at)
        seconds = time.time() - self._started_at
        examples = self._coordinator.status().examples_applied
        self._gauges.note(seconds, examples, states)

    def run_report(self) -> Report:
        """How the run stands."""
        return self._gauges.report(
            self._coordinator.status(),
            elapsed_s=time.time() - self._started_at,
            failure=self._failure or self._record.failure,
            snapshot=self._snapshots.newest,
            validation=self._evaluations.newest,
            run_dir=self._spec.storage.url,
        )

    def conclude(self, write_model: Callable[[], None]) -> Report:
        """After the last replica: a last look at the shards, the weights, the last evaluation."""
        self._closing.set()
        self._join("coordinator", "snapshots")
        self.observe()
        # Before an evaluation that is at work has ended: a spot machine may go any moment.
        self._snapshots.try_one("end")
        self._end_threads()
        self._note_epochs()
        self._check_waste()
        write_model()
        if self._coordinator.status().finished:
            self._evaluate_after(self._epochs_seen)
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

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failure = str(as_distbelief_error(error))
            self._record.emit("failure", cause=self._failure)

    def _follow(self) -> None:
        answered_at = told_at = time.monotonic()
        while not self._closing.wait(POLL_S):
            try:
                self.observe()
                self._tell_set_aside()
                self._check_waste()
                answered_at = time.monotonic()
            except TransportError:
                if time.monotonic() - answered_at > self._patience_s:
                    raise
                continue
            self._record.outcomes(self._coordinator.take_outcomes())
            self._note_epochs()
            if time.monotonic() - told_at >= _progress_event_s(time.time() - self._started_at):
                told_at = time.monotonic()
                self._record.progress(self.run_report())

    def _take_snapshots(self) -> None:
        self._snapshots.run(lambda: self._coordinator.status().examples_applied, self._closing)

    def _standing(self, files: Sequence[ShardFile]) -> Standing:
        self._record.sync()  # what happened before it is as durable as the snapshot
        return Standing(
            examples_applied=self._coordinator.examples_of([file.state for file in files]),
            elapsed_s=time.time() - self._started_at,
            losses=self._coordinator.status().losses,
            validation=self._evaluations.newest,
        )

    def _tell_set_aside(self) -> None:
        self._untold.update(self._coordinator.take_set_aside())
        for item, reason in list(self._untold.items()):
            for shard in self._shards:
                shard.set_aside((item,), reason)
            del self._untold[item]
            self._record.emit("set_aside", item=item, reason=reason)

    def _check_waste(self) -> None:
        """Ends a run that goes on without doing anything, before it says that it has finished."""
        status = self._coordinator.status()
        n_skipped, n_aside = status.examples_skipped, status.items_set_aside
        if n_skipped > max(MOST_SKIPPED, SHARE_SKIPPED * status.examples_applied):
            some = f"{', '.join(self._unreadable)}; " if self._unreadable else ""
            raise RunError(
                f"{n_skipped} of {status.examples_applied} images could not be read: mend or "
                f"remove them ({some}all are in the push logs, as skipped)"
            )
        if n_aside > max(MOST_SET_ASIDE, SHARE_SET_ASIDE * self._plan.n_items):
            raise RunError(
                f"{n_aside} of {self._plan.n_items} items had to be set aside: the training has "
                f"diverged; lower --lr, or set --clip-norm; if so from the start, look at the data"
            )

    def _note_epochs(self) -> None:
        finished = self._coordinator.status().epochs_finished
        while self._epochs_seen < finished:
            self._epochs_seen += 1
            self._record.emit("epoch", epoch=self._epochs_seen)
            # The run's last epoch is evaluated when everything has ended.
            if self._epochs_seen < self._plan.n_epochs:
                self._evaluations.ask(self._epochs_seen)

    def _evaluate(self) -> None:
        while not self._closing.is_set():
            epoch = self._evaluations.next(POLL_S)
            if epoch is not None:
                self._evaluate_after(epoch)

    def _evaluate_after(self, epoch: int) -> None:
        examples = self._coordinator.status().examples_applied
        found = self._evaluations.run(epoch, examples)
        if found is not None:
            self._record.evaluation(examples, *found)


def _progress_event_s(elapsed_s: float) -> float:
    return min(PROGRESS_EVENT_S, max(1.0, elapsed_s / 60))
