"""What a run shows to whoever watches it: lines, or a screen that changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from distbelief.observe.lasting import Lasting
from distbelief.observe.report import Report, progress_line

Say = Callable[[str], None]

LINE_S = 3.0


class View(Protocol):
    """Where a run is shown. A context manager, for one thread; nothing is shown after its end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        ...

    def show(self, report: Report, *, last: bool = False) -> None:
        """Shows how the run stands; called several times a second, and once more at the end."""
        ...


class Lines:
    """Satisfies :class:`View` with a progress line every few seconds.

    Args:
        write: Takes each line; by default they are printed to the standard output.
    """

    def __init__(self, write: Say | None = None) -> None:
        self._write = write or Lasting(sys.stdout).say
        self._shown_at: float | None = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See :class:`View`."""

    def say(self, line: str) -> None:
        """See :class:`View`."""
        self._write(line)

    def show(self, report: Report, *, last: bool = False) -> None:
        """See :class:`View`."""
        now = time.monotonic()
        if self._shown_at is None:  # the first line comes when there is something to say
            self._shown_at = now
        if last or now - self._shown_at >= LINE_S:
            self._shown_at = now
            self._write(progress_line(report))
