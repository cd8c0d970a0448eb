"""Showing a run that another process trains, from its folder alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import rich.live

from distbelief.observe.live import suits
from distbelief.observe.record import Event, Record, recoveries_of, report_of, silent_s
from distbelief.observe.report import duration, progress_line
from distbelief.observe.screen import Screen

WATCH_S = 2.0
SILENT_S = 120.0
"""A run that has written nothing for so long has been killed, or hangs."""

Look = Callable[[], tuple[Record, bool]]
"""What a run's folder holds now, and whether the run goes on."""

Tell = Callable[[Record], object]


def watch(
    look: Look, *, tell: Tell | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Shows a run every two seconds until it has ended; once if it has ended already.

    Args:
        look: What is shown.
        tell: Shows it; by default a screen on a terminal that can redraw, and lines elsewhere. Both
            tell what has been replaced since the first look.
        sleep: Waits.

    Raises:
        DataError: the folder cannot be read.
        KeyboardInterrupt: the user has seen enough.
    """
    if tell is not None:
        _watch(look, tell, sleep)
        return
    n_told: int | None = None

    def news(record: Record, say: Callable[[str], object]) -> None:
        nonlocal n_told
        found = recoveries_of(record)
        for event in found[len(found) if n_told is None else n_told :]:
            say(recovery_line(event))
        n_told = len(found)

    if suits(sys.stdout):
        with rich.live.Live(auto_refresh=False) as live:

            def draw(record: Record) -> None:
                news(
                    record,
                    lambda line: live.console.print(
                        line, markup=False, highlight=False, emoji=False
                    ),
                )
                live.update(screen_of(record), refresh=True)

            _watch(look, draw, sleep)
    else:

        def write(record: Record) -> None:
            news(record, print)
            print(line_of(record), flush=True)

        _watch(look, write, sleep)


def _watch(look: Look, tell: Tell, sleep: Callable[[float], None]) -> None:
    while True:
        record, goes_on = look()
        tell(record)
        if not goes_on:
            return
        sleep(WATCH_S)


def screen_of(record: Record) -> Screen:
    """The run as a terminal shows it."""
    return Screen(
        report=report_of(record),
        recipe=record.recipe,
        status=record.end[0],
        note=note_of(record),
        history=[e["images_per_second"] for e in record.of("progress")],
    )


def line_of(record: Record) -> str:
    """The run in a line."""
    return f"{progress_line(report_of(record))}  {note_of(record) or record.end[0]}"


def note_of(record: Record) -> str:
    """Why it failed, or when it wrote last if it goes on, or nothing."""
    word, cause = record.end
    if word == "failed":
        return cause
    if word != "running":
        return ""
    silence = silent_s(record, time.time())
    if silence > SILENT_S:
        return f"has written nothing for {duration(silence)}: it was killed, or it hangs"
    return f"last wrote {duration(silence)} ago"


def recovery_line(event: Event) -> str:
    """What was lost and has been replaced, in a line."""
    seconds = event.get("seconds")
    served = "replaced" if seconds is None else f"replaced in {seconds:.1f} s"
    return f"{duration(event['t']):>6}  {event.get('what', '')} {served}: {event.get('cause', '')}"
