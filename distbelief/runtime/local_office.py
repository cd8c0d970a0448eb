"""The coordinator of a run inside one process: the present one, which may die and be replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from distbelief.errors import ProcessLostError
from distbelief.runtime.coordinator_host import CoordinatorHost
from distbelief.runtime.endpoints import Connected
from distbelief.runtime.evaluations import Evaluate
from distbelief.runtime.host_spec import HostSpec
from distbelief.types import Orders, ReplicaReport

PAUSE_S = 0.05


class Office:
    """Satisfies :class:`~distbelief.services.CoordinatorService` while coordinators come and go.

    A context manager that ends the present one. Reports may come from any thread; the rest is for
    the supervisor's.

    Args:
        patience_s: How long a report waits for a coordinator.
        connected: Reaches the shards.
        evaluate: Evaluates the averaged weights.
    """

    def __init__(
        self,
        patience_s: float,
        connected: Callable[[], AbstractContextManager[Connected]],
        evaluate: Evaluate,
    ) -> None:
        self._patience_s = patience_s
        self._connected = connected
        self._evaluate = evaluate
        self._host: CoordinatorHost | None = None
        self._start = 0
        self._stack = ExitStack()
        self._unwritten: list[tuple[str, dict[str, Any]]] = []
        self._closed = threading.Event()

    def __enter__(self) -> Office:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._stack.close()

    @property
    def host(self) -> CoordinatorHost | None:
        """The coordinator, if there is one that lives."""
        return None if self._host is None or self._host.dead else self._host

    @property
    def dead(self) -> tuple[int, str] | None:
        """Which start of it has died, and why, until it is ended."""
        return (
            (self._start, self._host.dead) if self._host is not None and self._host.dead else None
        )

    def start(self, spec: HostSpec) -> None:
        """Starts a coordinator; returns when it answers."""
        with ExitStack() as stack:
            shards = stack.enter_context(self._connected()).shards
            host = stack.enter_context(CoordinatorHost(spec, shards, self._evaluate))
            self._stack, self._start = stack.pop_all(), spec.start
        self._host = host
        unwritten, self._unwritten = self._unwritten, []
        for kind, fields in unwritten:
            host.emit(kind, **fields)

    def end(self, start: int) -> None:
        """Ends the coordinator of that start, if it is the present one."""
        if start == self._start and self._host is not None:
            self._host = None
            self._stack.close()

    def close(self) -> None:
        """No report waits any longer; those that come are answered with the order to end."""
        self._closed.set()
        if (host := self.host) is not None:
            host.stop()

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event; without a coordinator it is kept until there is one."""
        host = self.host
        if host is None:
            self._unwritten.append((kind, fields))
        else:
            host.emit(kind, **fields)

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`; waits for a coordinator."""
        give_up_at = time.monotonic() + self._patience_s
        while True:
            host = self.host
            try:
                if host is not None:
                    return host.report(report)
            except ProcessLostError:
                if time.monotonic() > give_up_at:
                    raise
            if self._closed.wait(PAUSE_S):
                return Orders(stop=True)
            if time.monotonic() > give_up_at:
                raise ProcessLostError("the coordinator", "no other took its place in time")
