"""``distbelief stop [RUN]``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro

from distbelief.cli.ending import told
from distbelief.cli.options import parsed
from distbelief.cli.watching import WATCH_S
from distbelief.errors import DataError, UsageError
from distbelief.observe.record import newest_run
from distbelief.runtime.standing import standing_of
from distbelief.runtime.stopping import request_stop, withdraw
from distbelief.storage import Storage, storage_at

ENDED = {
    "finished": "it has finished",
    "interrupted": "it was interrupted",
    "failed": "it has failed",
    "died": "the process that trained has died",
}


def main(arguments: Sequence[str]) -> int:
    """Asks a run to end in order; 0 once it is asked, or has ended, 2 if it does not run."""

    def read(
        run: Annotated[str | None, tyro.conf.Positional] = None, wait: bool = False
    ) -> tuple[str | None, bool]:
        """Asks a run to end in order: replicas finish their items, and a snapshot is written.

        Args:
            run: The run's folder, a path or URL; by default the one below runs/ started last.
            wait: Return when it has ended.
        """
        return run, wait

    run, wait = parsed(read, arguments, "stop")
    storage = storage_at(newest_run("runs") if run is None else run, "run")
    standing = standing_of(storage)
    if standing.word != "running":
        raise UsageError(f"{storage.url} does not run: {ENDED[standing.word]}")
    try:
        request_stop(storage)
    except OSError as error:
        problem = f"cannot be written to: {error.strerror or error}"
        raise DataError(storage.url, problem) from error
    print(f"asked to end: {storage.url}", flush=True)
    return _await_end(storage, time.sleep) if wait else 0


def _await_end(storage: Storage, sleep: Callable[[float], None]) -> int:
    try:
        while (standing := standing_of(storage)).word == "running":
            sleep(WATCH_S)
    except KeyboardInterrupt:
        print(f"not waited for: {storage.url} was asked, and will end", flush=True)
        return 0
    withdraw(storage)  # of a run that ended before it saw it
    told(standing)
    return 0
