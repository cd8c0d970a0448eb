"""A replica's word to the coordinator: what it has done, and what it gets to do."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from distbelief.errors import DismissedError
from distbelief.faults.points import NONE, InjectedError, Injector
from distbelief.replica.feed import Feed
from distbelief.services import CoordinatorService
from distbelief.types import ItemOutcome, Orders, ReplicaReport

REPORT_S = 0.5
PACE_SMOOTHING = 0.8


@dataclass(kw_only=True)
class Progress:
    """What a replica has done, shared between its loop and its reporter."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: list[ItemOutcome] = field(default_factory=list)
    seconds_per_item: float | None = None
    waited_s: float = 0.0
    fetched_at: float | None = None

    def note_fetch(self) -> None:
        """Notes that newer parameters have come in."""
        with self.lock:
            self.fetched_at = time.monotonic()

    def parameters_age_s(self) -> float | None:
        """Seconds since then."""
        with self.lock:
            return None if self.fetched_at is None else time.monotonic() - self.fetched_at

    def note_wait(self, seconds: float) -> None:
        """Notes how long the compute waited for a batch."""
        with self.lock:
            self.waited_s += seconds

    def add(self, outcome: ItemOutcome) -> None:
        """Notes an outcome."""
        with self.lock:
            self.outcomes.append(outcome)

    def note_pace(self, seconds: float) -> None:
        """Notes how long an item took."""
        with self.lock:
            old = self.seconds_per_item
            if old is None:
                self.seconds_per_item = seconds
            else:
                self.seconds_per_item = PACE_SMOOTHING * old + (1 - PACE_SMOOTHING) * seconds

    def take(self) -> tuple[tuple[ItemOutcome, ...], float | None, float]:
        """The outcomes since the last call, the pace, and the seconds waited since."""
        with self.lock:
            taken, self.outcomes = tuple(self.outcomes), []
            waited_s, self.waited_s = self.waited_s, 0.0
            return taken, self.seconds_per_item, waited_s

    def put_back(self, outcomes: tuple[ItemOutcome, ...], waited_s: float) -> None:
        """Undoes :meth:`take`: what was taken has reached nobody."""
        with self.lock:
            self.outcomes = [*outcomes, *self.outcomes]
            self.waited_s += waited_s


class Reporter:
    """Reports to the coordinator every so often, and hands the items that it grants to the feed.

    A context manager around a thread. An error of the coordinator ends the feed and is raised by
    :meth:`check`, and so is a dismissal, as a RunError; no goodbye is said then. What a report that
    failed would have told stays in ``progress``.
    """

    def __init__(
        self,
        coordinator: CoordinatorService,
        feed: Feed,
        progress: Progress,
        replica: int,
        *,
        n_stages: int = 1,
        injector: Injector = NONE,
    ) -> None:
        self._injector = injector
        self._coordinator = coordinator
        self._feed = feed
        self._progress = progress
        self._replica = replica
        self._n_stages = n_stages
        self._wake = threading.Event()
        self._closing = False
        self._says_goodbye = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"replica-{replica}-reporter", daemon=True
        )

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What a replica that failed holds is given back when its loss is told, and counted then.
        self._says_goodbye = kind is None
        self._closing = True
        self._wake.set()
        self._thread.join()
        if kind is None:
            self.check()

    def item_done(self) -> None:
        """Asks for a report now if little is left to do."""
        if len(self._feed.held()) <= 2:
            self._wake.set()

    def check(self) -> None:
        """Raises the error that ended the reports, if any."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._closing:
                orders = self._report(leaving=False)
                if orders.dismissal:
                    raise DismissedError(orders.dismissal)
                if orders.stop:
                    break
                self._feed.extend(orders.items)
                self._wake.wait(REPORT_S)
                self._wake.clear()
            self._feed.end()
            while not self._closing:
                self._wake.wait()
                self._wake.clear()
            if self._says_goodbye:
                self._report(leaving=True)
        except (Exception, InjectedError) as error:
            self._error = error
            self._feed.end()

    def _report(self, *, leaving: bool) -> Orders:
        self._injector.at("before_report")
        outcomes, pace, waited_s = self._progress.take()
        report = ReplicaReport(
            replica=self._replica,
            host=socket.gethostname(),
            pid=os.getpid(),
            held=self._feed.held(),
            outcomes=outcomes,
            seconds_per_item=pace,
            waiting_s=waited_s,
            parameters_age_s=self._progress.parameters_age_s(),
            leaving=leaving,
            stages=self._n_stages,
        )
        try:
            return self._coordinator.report(report)
        except BaseException:
            self._progress.put_back(outcomes, waited_s)
            raise
