"""``distbelief status [RUN]``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import rich.live
import tyro
from rich.console import Console

from distbelief.cli.options import parsed
from distbelief.observe.live import suits
from distbelief.observe.record import (
    Record,
    newest_run,
    read_record,
    recoveries_of,
    report_of,
    silent_s,
)
from distbelief.observe.report import Report, duration, progress_line
from distbelief.observe.screen import Screen

WATCH_S = 2.0
SILENT_S = 120.0
"""A run that has written nothing for so long has been killed, or hangs."""

MOST_RECOVERIES = 5
WHOLE = 10_000
"""Rows of a terminal that shows everything."""


def main(arguments: Sequence[str]) -> int:
    """Shows how a run stands, from its folder alone; 0 unless there is no run."""

    def read(
        run: Annotated[str | None, tyro.conf.Positional] = None,
        json: bool = False,
        watch: bool = False,
    ) -> tuple[str | None, bool, bool]:
        """Shows how a run stands, from its folder alone: of one that goes on, or has ended.

        Args:
            run: The run's folder, a path or URL; by default the one below runs/ started last.
            json: Print the figures as JSON.
            watch: Show them again every two seconds until the run ends.
        """
        return run, json, watch

    run, as_json, watch = parsed(read, arguments, "status")
    run = newest_run("runs") if run is None else run
    if watch:
        return _watch(run, as_json, time.sleep)
    record = read_record(run)
    if as_json:
        print(json.dumps(_figures(record)))
    else:
        console = Console()
        console.height = WHOLE
        console.print(_screen(record))
        _print_recoveries(record, console)
    return 0


def _watch(run: str, as_json: bool, sleep: Callable[[float], None]) -> int:
    try:
        if not as_json and suits(sys.stdout):
            with rich.live.Live(auto_refresh=False) as live:
                while _show(run, lambda record: live.update(_screen(record), refresh=True)):
                    sleep(WATCH_S)
            return 0
        tell = _print_json if as_json else _print_line
        while _show(run, tell):
            sleep(WATCH_S)
    except KeyboardInterrupt:  # the way to leave it
        pass
    return 0


def _show(run: str, tell: Callable[[Record], object]) -> bool:
    record = read_record(run)
    tell(record)
    return record.end[0] == "running"


def _print_json(record: Record) -> None:
    print(json.dumps(_figures(record)), flush=True)


def _print_line(record: Record) -> None:
    line = progress_line(report_of(record))
    print(f"{line}  {_note(record) or record.end[0]}", flush=True)


def _screen(record: Record) -> Screen:
    return Screen(
        report=report_of(record),
        recipe=record.recipe,
        status=record.end[0],
        note=_note(record),
        history=[e["images_per_second"] for e in record.of("progress")],
    )


def _note(record: Record) -> str:
    word, cause = record.end
    if word == "failed":
        return cause
    if word != "running":
        return ""
    silence = silent_s(record, time.time())
    if silence > SILENT_S:
        return f"has written nothing for {duration(silence)}: it was killed, or it hangs"
    return f"last wrote {duration(silence)} ago"


def _print_recoveries(record: Record, console: Console) -> None:
    found = recoveries_of(record)
    for e in found[-MOST_RECOVERIES:]:
        served = f"replaced in {e['seconds']:.1f} s" if e.get("seconds") is not None else "replaced"
        line = f"{duration(e['t']):>6}  {e.get('what', '')} {served}: {e.get('cause', '')}"
        console.print(line, markup=False, highlight=False, emoji=False)
    if len(found) > MOST_RECOVERIES:
        console.print(f"        and {len(found) - MOST_RECOVERIES} before these")


def _figures(record: Record) -> dict[str, Any]:
    report: Report = report_of(record)
    word, cause = record.end
    return {
        "status": word,
        "cause": cause,
        "recipe": record.recipe,
        "silent_seconds": round(silent_s(record, time.time()), 1) if word == "running" else None,
        **asdict(report),
        "recoveries": recoveries_of(record),
    }
