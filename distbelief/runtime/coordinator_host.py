"""The coordinator's process: follows the shards, keeps the record, has the averages evaluated."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distbelief.coordinator.coordinator import Coordinator, RunStatus
from distbelief.coordinator.schedule import Schedule
from distbelief.errors import RunError, TransportError, as_distbelief_error
from distbelief.observe.events import EventLog
from distbelief.observe.report import Report
from distbelief.types import Orders, ReplicaReport, ShardService

POLL_S = 0.2
PROGRESS_EVENT_S = 5.0
RATE_WINDOW_S = 20.0
"""The present throughput is taken over so many seconds."""

MOST_SET_ASIDE, SHARE_SET_ASIDE = 3, 0.01
"""A run of which more than so many items, and more than this share, are set aside has failed."""

MOST_SKIPPED, SHARE_SKIPPED = 10, 0.001
"""Likewise of the images that could not be read."""

Evaluate = Callable[[], "dict[str, Any] | None"]


class Throughput:
    """Images a second from a series of (seconds, examples applied). Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def note(self, seconds: float, examples: int) -> None:
        """Adds a point; repeats of the same count say only that time has passed."""
        with self._lock:
            if examples and (self._last is None or examples != self._last[1]):
                self._first = self._first or (seconds, examples)
                self._last = (seconds, examples)
            self._recent.append((seconds, examples))
            while self._recent[0][0] < seconds - RATE_WINDOW_S and len(self._recent) > 2:
                self._recent.popleft()

    def now(self) -> float:
        """Over the last seconds in which something came."""
        with self._lock:
            points = [p for p in self._recent if p[1]]
        return _slope(points[0], points[-1]) if len(points) > 1 else 0.0

    def mean(self) -> float:
        """From the first example applied to the last."""
        with self._lock:
            first, last = self._first, self._last
        return _slope(first, last) if first and last else 0.0


def _slope(a: tuple[float, int], b: tuple[float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else 0.0


class CoordinatorHost:
    """Hosts a :class:`Coordinator`: a thread that polls the shards, and one that evaluates.

    A context manager. :meth:`report` and the others may be called by any thread. An error of a
    thread is the ``failure`` of the next report of the run.
    """

    def __init__(
        self,
        schedule: Schedule,
        shards: Sequence[ShardService],
        evaluate: Evaluate,
        *,
        lease_s: float,
        patience_s: float,
        started_at: float,
        run_dir: Path,
    ) -> None:
        self._plan = schedule.plan
        self._coordinator = Coordinator(schedule, len(shards), lease_s=lease_s)
        self._shards = tuple(shards)
        self._evaluate = evaluate
        self._patience_s = patience_s
        self._started_at = started_at
        self._events = EventLog(run_dir / "events.jsonl", started_at)
        self._throughput = Throughput()
        self._validation: dict[str, Any] | None = None
        self._failure = ""
        self._closing = threading.Event()
        self._epochs_seen = 0
        self._joined: set[int] = set()
        # Two epochs' evaluations may wait; one that comes on top is left out, and said so.
        self._to_evaluate: queue.Queue[int] = queue.Queue(2)
        self._untold: dict[int, str] = {}
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("coordinator", self._follow), ("evaluation", self._evaluations))
        ]

    def __enter__(self) -> CoordinatorHost:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_threads()
        self._events.close()

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`."""
        orders = self._coordinator.report(report, at=time.time())
        if report.replica not in self._joined:
            self._joined.add(report.replica)
            self._events.emit(
                "replica_joined", replica=report.replica, host=report.host, pid=report.pid
            )
        return orders

    def replica_lost(self, replica: int, cause: str) -> int:
        """Takes note of a replica's death; returns how many of its items go to others."""
        items = self._coordinator.replica_lost(replica)
        self._events.emit("replica_lost", replica=replica, cause=cause, items_returned=items)
        return len(items)

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event."""
        self._events.emit(kind, **fields)

    def stop(self) -> None:
        """Orders every replica to end."""
        self._coordinator.stop()

    def observe(self) -> None:
        """Asks every shard how it stands, now."""
        asked_at = self._coordinator.now()
        states = [shard.state() for shard in self._shards]
        self._coordinator.observe(states, asked_at)
        self._throughput.note(
            time.time() - self._started_at, self._coordinator.status().examples_applied
        )

    def run_report(self) -> Report:
        """How the run stands."""
        s = self._coordinator.status()
        rate = self._throughput.now()
        left = self._plan.total_examples - s.examples_applied - s.examples_set_aside
        return Report(
            elapsed_s=time.time() - self._started_at,
            finished=s.finished,
            failure=self._failure,
            epoch=min(s.epochs_finished + 1, self._plan.n_epochs),
            n_epochs=self._plan.n_epochs,
            examples_applied=s.examples_applied,
            examples_skipped=s.examples_skipped,
            examples_set_aside=s.examples_set_aside,
            total_examples=self._plan.total_examples,
            images_per_second=rate,
            mean_images_per_second=self._throughput.mean(),
            left_s=left / rate if rate else None,
            losses=s.losses,
            learning_rate=s.learning_rate,
            staleness=s.staleness,
            applied=s.applied,
            repeated=s.repeated,
            refused=s.refused,
            replicas=tuple(
                {
                    "replica": m.replica,
                    "host": m.host,
                    "pid": m.pid,
                    "items": m.items_done,
                    "examples": m.examples_done,
                    "seconds_per_item": m.seconds_per_item,
                }
                for m in s.members
            ),
            validation=self._validation,
            mean_waiting=_waiting_share(s),
        )

    def conclude(self, write_model: Callable[[], None]) -> Report:
        """After the last replica: a last look at the shards, the weights, the last evaluation."""
        self._end_threads()
        self.observe()
        self._note_epochs()
        write_model()
        self._evaluate_after(self._epochs_seen)
        self._record_progress()
        return self.run_report()

    def _end_threads(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._record_outcomes()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failure = str(as_distbelief_error(error))
            self._events.emit("failure", cause=self._failure)

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
            self._record_outcomes()
            self._note_epochs()
            if time.monotonic() - told_at >= PROGRESS_EVENT_S:
                told_at = time.monotonic()
                self._record_progress()

    def _tell_set_aside(self) -> None:
        self._untold.update(self._coordinator.take_set_aside())
        for item, reason in list(self._untold.items()):
            for shard in self._shards:
                shard.set_aside((item,), reason)
            del self._untold[item]
            self._events.emit("set_aside", item=item, reason=reason)

    def _check_waste(self) -> None:
        """Ends a run that goes on without doing anything, before it says that it has finished."""
        status = self._coordinator.status()
        n_skipped, n_aside = status.examples_skipped, status.items_set_aside
        if n_skipped > max(MOST_SKIPPED, SHARE_SKIPPED * status.examples_applied):
            raise RunError(
                f"{n_skipped} of {status.examples_applied} images could not be read: look at the "
                f"folder of --data; the push logs have their indices (skipped)"
            )
        if n_aside > max(MOST_SET_ASIDE, SHARE_SET_ASIDE * self._plan.n_items):
            raise RunError(
                f"{n_aside} of {self._plan.n_items} items had to be set aside: the training has "
                f"diverged; lower --lr, or set --clip-norm"
            )

    def _record_outcomes(self) -> None:
        outcomes = self._coordinator.take_outcomes()
        done = [(replica, o) for replica, o in outcomes if not o.refusal]
        names = dict.fromkeys(name for _, o in done for name in o.losses)
        if done:
            losses = {
                name: [round(o.losses[name], 5) if name in o.losses else None for _, o in done]
                for name in names
            }
            self._events.emit(
                "items",
                items=[o.item for _, o in done],
                replicas=[replica for replica, _ in done],
                losses=losses,
            )
        for replica, o in outcomes:
            if o.refusal:
                self._events.emit("refused", replica=replica, item=o.item, reason=o.refusal)

    def _note_epochs(self) -> None:
        finished = self._coordinator.status().epochs_finished
        while self._epochs_seen < finished:
            self._epochs_seen += 1
            self._events.emit("epoch", epoch=self._epochs_seen)
            # The run's last epoch is evaluated when everything has ended.
            if self._epochs_seen < self._plan.n_epochs:
                try:
                    self._to_evaluate.put_nowait(self._epochs_seen)
                except queue.Full:
                    self._events.emit("evaluation_left_out", epoch=self._epochs_seen)

    def _evaluations(self) -> None:
        while not self._closing.is_set():
            try:
                epoch = self._to_evaluate.get(timeout=POLL_S)
            except queue.Empty:
                continue
            self._evaluate_after(epoch)

    def _evaluate_after(self, epoch: int) -> None:
        try:
            result = self._evaluate()
        except Exception as error:
            # Training does not depend on it, and the weights are on disk before the last one.
            cause = str(as_distbelief_error(error))
            self._events.emit("evaluation_failed", epoch=epoch, cause=cause)
            return
        if result is not None:
            self._validation = {k: v for k, v in result.items() if k != "seconds"}
            self._events.emit("evaluation", epoch=epoch, **result)

    def _record_progress(self) -> None:
        r = self.run_report()
        self._events.emit(
            "progress",
            examples_applied=r.examples_applied,
            images_per_second=round(r.images_per_second, 2),
            losses={name: round(value, 5) for name, value in r.losses.items()},
            learning_rate=r.learning_rate,
            replicas=[p["replica"] for p in r.replicas],
        )


def _waiting_share(status: RunStatus) -> float:
    busy = sum((m.seconds_per_item or 0.0) * m.items_done for m in status.members)
    waiting = sum(m.waiting_s for m in status.members)
    return waiting / busy if busy else 0.0
