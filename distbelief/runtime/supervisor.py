"""Watches a run from its start to its end: starts replicas, replaces the dead, tells the user."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from distbelief.errors import DistBeliefError, RunError, UnexpectedError, as_distbelief_error
from distbelief.observe.report import Report, summary
from distbelief.observe.view import View
from distbelief.runtime.folder import MODEL, SUMMARY
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.world import ReplicaEnd, World
from distbelief.storage import write_json

MAX_BARREN_DEATHS = 3
"""So many replicas dying one after another, none of which did an item, end the run."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

WAIT_S = 0.25
DRAIN_S = 60.0


@dataclass
class Stop:
    """Whether the user has asked the run to end."""

    event: threading.Event = field(default_factory=threading.Event)
    signals: int = 0
    catching: bool = False
    starting: bool = False
    """Whether the run is being started, where nobody else tells that the signal has come."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; the second one insists."""
        self.signals += 1
        self.event.set()
        if self.signals > 1:
            raise KeyboardInterrupt
        if self.starting:  # no print here: a signal may have come in the middle of one
            os.write(sys.stderr.fileno(), b"stopping: what has been started is ended first\n")

    def catch(self) -> None:
        """Takes the signals again, from whatever library has put its own handlers in place.

        Ray does, and would end the process at SIGTERM without a word to its actors.
        """
        if self.catching:
            for number in SIGNALS:
                signal.signal(number, self.on_signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for an orderly end for the time of the block.

    Outside the main thread, where Python takes no handlers, nothing is installed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = [signal.getsignal(number) for number in SIGNALS]
    stop.catching = True
    stop.catch()
    try:
        yield stop
    finally:
        stop.catching = False
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


class Supervisor:
    """One run in a world."""

    def __init__(self, world: World, prepared: Prepared, stop: Stop, view: View) -> None:
        self._world = world
        self._prepared = prepared
        self._stop = stop
        self._view = view
        self._say = view.say
        self._n_replicas = prepared.config.cluster.replicas
        self._started = prepared.first_replica
        self._snapshot_told: int | None = None
        self._failure_told: str | None = None
        self._running: set[int] = set()
        self._awaited: list[tuple[dict[str, Any], float, int]] = []
        before = prepared.before
        self._recoveries: list[dict[str, Any]] = [
            *(before.summary.get("recoveries", []) if before else [])
        ]
        self._barren_deaths = 0
        self._examples_at_death = 0
        self._last_report: Report | None = None

    @property
    def has_trained(self) -> bool:
        """Whether anything has been applied since the start."""
        applied = self._last_report.examples_applied if self._last_report else 0
        resumed = self._prepared.resumed
        return applied > (resumed.examples_applied if resumed else 0)

    def run(self) -> dict[str, Any]:
        """Runs to the end, or to the user's stop; returns what went into ``summary.json``.

        Raises:
            DistBeliefError: the run failed; ``summary.json`` says so.
            KeyboardInterrupt: the user insisted; likewise.
        """
        try:
            return self._run()
        except BaseException as error:
            self._record_failure(error)
            raise

    def _record_failure(self, error: BaseException) -> None:
        try:
            if isinstance(error, KeyboardInterrupt):
                self._write_summary("interrupted")
                self._world.emit("end", status="interrupted")
                return
            cause = str(as_distbelief_error(error))
            self._write_summary("failed", cause=cause)
            self._world.emit("failure", cause=cause)
        except (OSError, RunError) as second:
            # The first error is on its way up; this one shall neither hide nor replace it.
            self._say(f"and it could not be recorded: {second}")

    def _run(self) -> dict[str, Any]:
        if not self._stop.event.is_set():
            for _ in range(self._n_replicas):
                self._start_replica()
        while True:
            ends = self._world.wait(WAIT_S)
            report = self._report()
            if report.failure:
                raise RunError(report.failure)
            for end in ends:
                self._running.discard(end.replica)
                if end.error is not None:
                    self._replace(end, end.error, report)
            self._note_recoveries(report)
            self._note_snapshot(report)
            if report.finished or self._stop.event.is_set():
                break
            self._view.show(report)
        return self._end("finished" if report.finished else "interrupted")

    def _report(self) -> Report:
        self._last_report = self._world.report()
        return self._last_report

    def _end(self, status: str) -> dict[str, Any]:
        if status == "interrupted":
            self._say("stopping: each replica finishes its item (once more not to wait)")
        self._world.stop()
        give_up_at = time.monotonic() + DRAIN_S
        while self._running and time.monotonic() < give_up_at:
            for end in self._world.wait(WAIT_S):
                self._running.discard(end.replica)
                if end.error is not None:
                    self._world.replica_lost(end.replica, str(end.error))
        if self._running:
            self._world.emit("not_drained", replicas=sorted(self._running))
        self._last_report = self._world.conclude(MODEL)
        self._view.show(self._last_report, last=True)
        self._world.emit("end", status=status)
        return self._write_summary(status)

    def _start_replica(self) -> int:
        replica = self._started
        self._started += 1
        self._world.start_replica(replica)
        self._running.add(replica)
        return replica

    def _replace(self, end: ReplicaEnd, error: DistBeliefError, report: Report) -> None:
        n_items = self._world.replica_lost(end.replica, str(error))
        if report.finished or self._stop.event.is_set():
            return
        # What fails before anything was done, of itself, will fail again.
        of_itself = isinstance(error, UnexpectedError) and report.examples_applied == 0
        if end.fatal or of_itself:
            raise error
        self._count_barren(end.replica, error, report)
        successor = self._start_replica()
        self._say(
            f"replica {end.replica} was lost ({error}); {n_items} items go to others, "
            f"replica {successor} takes its place"
        )
        recovery = {
            "what": f"replica {end.replica}",
            "cause": str(error),
            "t": round(report.elapsed_s, 2),
            "seconds": None,
            "items_leased_again": n_items,
        }
        self._recoveries.append(recovery)
        self._awaited.append((recovery, time.monotonic(), successor))

    def _count_barren(self, replica: int, error: DistBeliefError, report: Report) -> None:
        worked = any(r["replica"] == replica and r["items"] for r in report.replicas)
        advanced = report.examples_applied > self._examples_at_death
        self._examples_at_death = report.examples_applied
        self._barren_deaths = 0 if worked or advanced else self._barren_deaths + 1
        if self._barren_deaths >= MAX_BARREN_DEATHS:
            raise error

    def _note_recoveries(self, report: Report) -> None:
        """A replacement serves once it has done its first item."""
        working = {r["replica"] for r in report.replicas if r["items"]}
        for entry in list(self._awaited):
            recovery, died_at, successor = entry
            if successor in working:
                recovery["seconds"] = round(time.monotonic() - died_at, 2)
                about = {name: value for name, value in recovery.items() if name != "t"}
                self._world.emit("replica_replaced", **about, replica=successor)
                self._awaited.remove(entry)

    def _note_snapshot(self, report: Report) -> None:
        """The summary is as new as the newest snapshot."""
        snapshot = report.snapshot or {}
        number, failed = snapshot.get("number"), snapshot.get("failed")
        if failed and failed != self._failure_told:
            self._say(f"a snapshot failed, and is tried again: {failed}")
        self._failure_told = failed
        if number != self._snapshot_told:
            self._snapshot_told = number
            self._write_summary("running")

    def _write_summary(self, status: str, cause: str = "") -> dict[str, Any]:
        config = self._prepared.config
        written = summary(
            self._last_report,
            status=status,
            stages=[slot.stages for slot in config.slots],
            shards=config.cluster.shards,
            recoveries=self._recoveries,
        )
        if cause:
            written["cause"] = cause
        write_json(self._prepared.storage, SUMMARY, written)
        return written
