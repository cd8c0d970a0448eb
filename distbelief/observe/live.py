"""A view of a run that changes in place, for a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import IO

import rich.live
from rich.console import Console

from distbelief.observe.report import Report
from distbelief.observe.screen import Screen

REDRAW_S = 0.25
HISTORY_S = 1.0
N_HISTORY = 60


def suits(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that can redraw."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Live:
    """Satisfies :class:`~distbelief.observe.view.View` with a screen; lines scroll above it.

    The last screen stays, and the cursor comes back, however the block ends.

    Args:
        recipe: The run's recipe.
        console: Where to draw; by default the standard output.
        clock: Seconds.
    """

    def __init__(
        self,
        recipe: str,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe = recipe
        self._console = console or Console()
        self._clock = clock
        self._history: deque[float] = deque(maxlen=N_HISTORY)
        self._drawn_at = self._noted_at = float("-inf")
        self._live: rich.live.Live | None = None

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """See :class:`~distbelief.observe.view.View`."""
        self._console.print(line, markup=False, highlight=False, emoji=False)

    def show(self, report: Report, *, last: bool = False) -> None:
        """See :class:`~distbelief.observe.view.View`."""
        now = self._clock()
        if report.images_per_second and now - self._noted_at >= HISTORY_S:
            self._history.append(report.images_per_second)
            self._noted_at = now
        if not last and now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        status = "failed" if report.failure else "finished" if report.finished else "running"
        if last and status == "running":
            status = "interrupted"
        screen = Screen(
            report=report, recipe=self._recipe, status=status, history=tuple(self._history)
        )
        if self._live is None:
            self._live = rich.live.Live(
                screen,
                console=self._console,
                auto_refresh=False,
                # What Ray prints shall scroll too; but a file stays a file.
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        self._live.update(screen, refresh=True)
