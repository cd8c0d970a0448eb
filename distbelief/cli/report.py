"""``distbelief report RUN...``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from distbelief.cli.options import parsed
from distbelief.errors import ConfigError, UsageError
from distbelief.observe.page import page
from distbelief.observe.record import newest_run, read_record


def main(arguments: Sequence[str]) -> int:
    """Writes the report of the runs, and prints where it lies."""

    def read(
        runs: tyro.conf.Positional[tuple[str, ...]] = (), output: Path = Path("report.html")
    ) -> tuple[tuple[str, ...], Path]:
        """Writes one HTML page with plots of a run, or of several compared; it needs no network.

        Args:
            runs: The runs' folders, paths or URLs; by default the one below runs/ started last.
            output: File to write.
        """
        return runs, output

    runs, output = parsed(read, arguments, "report")
    if len(set(runs)) < len(runs):
        raise UsageError("the same run is named twice; name each once")
    records = [read_record(run) for run in runs or (newest_run("runs"),)]
    text = page(records, time.time())
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError("output", f"cannot write {output}: {error.strerror}") from error
    print(f"report: {output}")
    return 0
