"""Watches a run from its start to its end: starts replicas, replaces the dead, tells the user."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from distbelief.errors import ProcessLostError, RunError, as_distbelief_error
from distbelief.observe.report import Report, summary
from distbelief.observe.view import View
from distbelief.runtime.folder import MODEL, SUMMARY
from distbelief.runtime.keeper import Keeper, Members
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.replica_keeper import ReplicaKeeper
from distbelief.runtime.signals import Stop
from distbelief.runtime.world import ReplicaEnd, World
from distbelief.storage import write_json

WAIT_S = 0.25
DRAIN_S = 60.0

MOST_CONCLUSIONS = 3
"""So often it is tried."""


class Supervisor:
    """One run in a world."""

    def __init__(self, world: World, prepared: Prepared, stop: Stop, view: View) -> None:
        self._world = world
        self._prepared = prepared
        self._stop = stop
        self._view = view
        self._say = view.say
        self._snapshot_told: int | None = None
        self._failure_told: str | None = None
        self._trouble_told = ""
        self._members = Members()
        self._untold: list[tuple[int, str]] = []
        before = prepared.before
        self._recoveries: list[dict[str, Any]] = [
            *(before.summary.get("recoveries", []) if before else [])
        ]
        self._replicas = ReplicaKeeper(
            world,
            self._members,
            first=prepared.first_replica,
            n_replicas=prepared.config.cluster.replicas,
            recoveries=self._recoveries,
            say=self._say,
        )
        self._last_report: Report | None = None

    @property
    def _url(self) -> str:
        return self._prepared.storage.url

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
            how = f"make room, then go on with: distbelief train --resume {self._url}"
            self._say(f"the run's end could not be written into its folder ({second}); {how}")

    def _run(self) -> dict[str, Any]:
        with Keeper(
            self._prepared,
            self._world,
            self._members,
            recovered=self._recoveries.append,
            say=self._say,
        ) as keeper:
            self._keeper = keeper
            keeper.begin()
            if not self._stop.event.is_set():
                self._replicas.fill()
            while True:
                report = self._look()
                if report is not None and self._is_over(report):
                    ended = self._end("finished" if report.finished else "interrupted")
                    if ended is not None:
                        return ended

    def _is_over(self, report: Report) -> bool:
        self._replicas.note_recoveries(report)
        self._note_snapshot(report)
        if report.finished or self._stop.event.is_set():
            return True
        self._view.show(report)
        return False

    def _look(self, *, replace: bool = True) -> Report | None:
        """Waits a moment, and deals with what has happened; how the run stands, if that is known.

        Args:
            replace: Whether replicas that are lost are replaced.
        """
        happenings = self._world.wait(WAIT_S)
        report = self._world.report()
        if report is not None:
            self._last_report = report
            if report.failure:
                raise RunError(report.failure)
            self._tell_losses()
        t = time.time() - self._prepared.started_at
        for what in happenings:
            if not isinstance(what, ReplicaEnd):
                self._keeper.happened(what, t)
                continue
            self._members.running.discard(what.replica)
            if what.error is not None:
                n_items = self._lost(what.replica, what.cause)
                over = self._stop.event.is_set() or (report is not None and report.finished)
                if replace and not over:
                    self._replicas.replace(
                        what,
                        what.error,
                        n_items,
                        t=t,
                        report=self._last_report,
                        has_trained=self.has_trained,
                    )
        self._keeper.tick(report)
        if replace:
            self._replicas.start_due()
        return report

    def _lost(self, replica: int, cause: str) -> int | None:
        """Has the coordinator know of a death; how many items go to others, if it can tell now."""
        self._members.lost.add(replica)
        n_items = self._world.replica_lost(replica, cause)
        if n_items is None:
            self._untold.append((replica, cause))
        return n_items

    def _tell_losses(self) -> None:
        """What a coordinator was not there to hear, and the next one need not know at its start."""
        untold, self._untold = self._untold, []
        for replica, cause in untold:
            self._lost(replica, cause)

    def _end(self, status: str) -> dict[str, Any] | None:
        """Ends the run; None if it turns out that it is not at its end yet."""
        if status == "interrupted":
            self._say("stopping: each replica finishes its item (Ctrl-C again does not wait)")
            self._world.stop()
        drained_by = time.monotonic() + DRAIN_S
        give_up_at = drained_by + self._prepared.config.cluster.patience_s
        while True:
            report, now = self._look(replace=False), time.monotonic()
            # Shards that are being started anew may have forgotten what the last report says.
            sure = self._keeper.settled and self._is_newest(report)
            if (sure and (not self._members.running or now > drained_by)) or now > give_up_at:
                break
            if status == "interrupted":
                self._world.stop()  # a coordinator that was started meanwhile has not heard it
        if status == "finished" and not (sure and report and report.finished):
            # A shard died with the last items, and forgot some: they are to be done again.
            self._say("a shard has forgotten some of the last items: they are done again")
            self._replicas.fill()
            return None
        if self._members.running:
            self._world.emit("not_drained", replicas=sorted(self._members.running))
        self._last_report = self._conclude()
        self._view.show(self._last_report, last=True)
        self._world.emit("end", status=status)
        return self._write_summary(status)

    def _conclude(self) -> Report:
        """Has the run concluded: once more by another coordinator, if one dies over it."""
        before = self._keeper.n_anew
        for attempt in range(1, MOST_CONCLUSIONS + 1):
            try:
                found = self._world.conclude(MODEL, lambda: self._look(replace=False))
                break
            except ProcessLostError as error:
                if attempt == MOST_CONCLUSIONS or error.what != "the coordinator":
                    raise
                while not self._is_newest(self._look(replace=False)):
                    pass
        if self._keeper.n_anew != before or not self._keeper.settled:
            what = "it died while the run was being concluded, and has forgotten some of it"
            how = f"go on with: distbelief train --resume {self._url}"
            raise ProcessLostError("a shard", f"{what}; {how}")
        return found

    def _is_newest(self, report: Report | None) -> bool:
        """Whether it is of the shards that serve; others may have forgotten what it says."""
        if report is None:
            return False
        return tuple(s["incarnation"] for s in report.shards) == self._keeper.incarnations

    def _note_snapshot(self, report: Report) -> None:
        """The summary is as new as the newest snapshot."""
        snapshot = report.snapshot or {}
        number, failed = snapshot.get("number"), snapshot.get("failed")
        if failed and failed != self._failure_told:
            self._say(f"a snapshot failed, and is tried again: {failed}")
        self._failure_told = failed
        if report.trouble and report.trouble != self._trouble_told:
            self._say(f"the run goes on, but its records wait, make room: {report.trouble}")
        self._trouble_told = report.trouble
        if number != self._snapshot_told:
            self._snapshot_told = number
            with suppress(OSError):  # it is written again at the next snapshot, and at the end
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
