"""``distbelief bench``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distbelief.bench.heartbeats import measure_heartbeats
from distbelief.bench.recovery import Case, measure_recovery
from distbelief.cli.options import parsed
from distbelief.errors import ConfigError, UsageError
from distbelief.observe.lasting import Lasting

USAGE = """\
usage: distbelief bench WHAT ...

  recovery     seconds until what dies serves again
  heartbeats   false alarms of a run at full load, to which nothing is done

distbelief bench WHAT --help tells the options."""


def main(arguments: Sequence[str]) -> int:
    """Measures; 0 if what is promised is kept, else 1."""
    what, *rest = arguments or ("--help",)
    if what in ("-h", "--help"):
        print(USAGE)
        return 0
    known: dict[str, Callable[[Sequence[str]], int]] = {
        "recovery": _recovery,
        "heartbeats": _heartbeats,
    }
    if what not in known:
        raise UsageError(f"distbelief bench measures {' or '.join(known)}, not {what!r}")
    return known[what](rest)


def _recovery(arguments: Sequence[str]) -> int:
    def read(
        runs: int = 5, json: str | None = None, run_dir: str | None = None
    ) -> tuple[int, str | None, str | None]:
        """Measures how soon what dies serves again, on this host, a local Ray and small networks.

        Args:
            runs: How many times each is measured, of which the median counts.
            json: Write all values into this file, as JSON.
            run_dir: Folder for the runs; by default one below the system's temporary folder.
        """
        if runs < 1:
            raise ConfigError("runs", f"must be at least 1, not {runs}")
        return runs, json, run_dir

    runs, file, run_dir = parsed(read, arguments, "bench recovery")
    cases = measure_recovery(runs, _folder(run_dir), _say())
    Console().print(table(cases))
    if file is not None:
        _write(file, {"host": _host(), "cases": [figures(case) for case in cases]})
    return 0 if all(case.kept for case in cases) else 1


def _heartbeats(arguments: Sequence[str]) -> int:
    def read(
        minutes: float = 10.0,
        burn: int = 0,
        json: str | None = None,
        run_dir: str | None = None,
    ) -> tuple[float, int, str | None, str | None]:
        """Counts false alarms of a run at full load, to which nothing is done.

        Args:
            minutes: How long.
            burn: Busy processes beside the run's own.
            json: Write what was found into this file, as JSON.
            run_dir: Folder for the run; by default one below the system's temporary folder.
        """
        if not minutes > 0:
            raise ConfigError("minutes", f"must be greater than 0, not {minutes:g}")
        if burn < 0:
            raise ConfigError("burn", f"must be at least 0, not {burn}")
        return minutes, burn, json, run_dir

    minutes, burn, file, run_dir = parsed(read, arguments, "bench heartbeats")
    found = measure_heartbeats(60 * minutes, _folder(run_dir) / "run", burn=burn, say=_say())
    print(
        f"{len(found.alarms)} false alarms in {found.seconds / 60:.1f} minutes, at a load of "
        f"{found.load:.1f} on {os.cpu_count()} cores; {found.examples:,} examples were applied"
    )
    for alarm in found.alarms:
        print(f"  {json.dumps(alarm)}")
    if file is not None:
        _write(file, {"host": _host(), **asdict(found)})
    return 1 if found.alarms else 0


def figures(case: Case) -> dict[str, Any]:
    """A case as plain values."""
    return {
        "name": case.name,
        "limit_seconds": case.limit_s,
        "median_seconds": case.median_s,
        "kept": case.kept,
        "failure": case.failure,
        "seconds": case.values,
        "recoveries": [asdict(detail) for detail in case.details],
    }


def table(cases: Sequence[Case]) -> Table:
    """The cases for a person: median, what is promised, and all values."""
    found = Table(box=None, pad_edge=False)
    for title in ("", "median", "promised", "kept", "all"):
        found.add_column(title, justify="right" if title in ("median", "promised") else "left")
    for case in cases:
        found.add_row(
            case.name,
            "" if case.median_s is None else f"{case.median_s:.2f}s",
            "" if case.limit_s is None else f"{case.limit_s:g}s",
            "" if case.kept and case.limit_s is None else ("yes" if case.kept else "no"),
            " ".join(f"{value:.2f}" for value in case.values),
        )
    return found


def _say() -> Callable[[str], None]:
    return Lasting(sys.stderr).say


def _folder(run_dir: str | None) -> Path:
    return Path(run_dir or tempfile.mkdtemp(prefix="distbelief-bench-"))


def _host() -> dict[str, Any]:
    return {"name": os.uname().nodename, "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _write(file: str, values: dict[str, Any]) -> None:
    try:
        Path(file).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError("json", f"cannot write {file}: {error.strerror or error}") from error
