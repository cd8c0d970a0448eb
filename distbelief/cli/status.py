"""``distbelief status [RUN]``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import tyro
from rich.console import Console

from distbelief.cli.options import parsed
from distbelief.cli.watching import recovery_line, screen_of, watch
from distbelief.observe.record import (
    Record,
    newest_run,
    read_record,
    recoveries_of,
    report_of,
    silent_s,
)
from distbelief.observe.report import Report
from distbelief.runtime.standing import standing_of
from distbelief.storage import storage_at

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
    died = record.end[0] == "running" and standing_of(storage_at(run)).word == "died"
    if as_json:
        print(json.dumps(_figures(record) | ({"status": "died"} if died else {})))
    else:
        console = Console()
        console.height = WHOLE
        console.print(screen_of(record))
        if died:
            print(f"the process that trained has died; go on with: distbelief train --resume {run}")
        _print_recoveries(record, console)
    return 0


def _watch(run: str, as_json: bool, sleep: Callable[[float], None]) -> int:
    def look() -> tuple[Record, bool]:
        record = read_record(run)
        return record, record.end[0] == "running"

    with suppress(KeyboardInterrupt):  # the way to leave it
        watch(look, tell=_print_json if as_json else None, sleep=sleep)
    return 0


def _print_json(record: Record) -> None:
    print(json.dumps(_figures(record)), flush=True)


def _print_recoveries(record: Record, console: Console) -> None:
    found = recoveries_of(record)
    for event in found[-MOST_RECOVERIES:]:
        console.print(recovery_line(event), markup=False, highlight=False, emoji=False)
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
