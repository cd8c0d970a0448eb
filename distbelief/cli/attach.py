"""``distbelief attach [RUN]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from distbelief.cli.ending import told
from distbelief.cli.options import parsed
from distbelief.cli.watching import watch
from distbelief.errors import DataError, RunError
from distbelief.observe.record import Record, newest_run
from distbelief.runtime.standing import Standing, standing_of
from distbelief.storage import Storage, storage_at


class Watched:
    """Looks at a run again and again; the last look is kept."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.standing: Standing | None = None

    def look(self) -> tuple[Record, bool]:
        """What the folder holds, and whether the run goes on.

        Raises:
            DataError: it is no run's folder.
            RunError: it is none any more.
        """
        try:
            self.standing = standing_of(self._storage)
        except DataError:
            if self.standing is None or self._storage.exists("config.json"):
                raise
            raise RunError(
                f"{self._storage.url}: the run failed before it began to train, and has taken its "
                f"record back; if it was detached, driver.log there says why"
            ) from None
        return self.standing.record, self.standing.word == "running"


def main(arguments: Sequence[str]) -> int:
    """Shows a run until it ends; its exit code: 0 finished, 1 failed, 130 interrupted."""

    def read(run: Annotated[str | None, tyro.conf.Positional] = None) -> str | None:
        """Shows a run that goes on, as train does, until it ends; Ctrl-C leaves it running.

        Args:
            run: The run's folder, a path or URL; by default the one below runs/ started last.
        """
        return run

    run = parsed(read, arguments, "attach")
    storage = storage_at(newest_run("runs") if run is None else run, "run")
    watched = Watched(storage)
    try:
        watch(watched.look)
    except KeyboardInterrupt:
        url = storage.url
        print(f"left it running: {url}; to end it: distbelief stop {url}", flush=True)
        return 0
    assert watched.standing is not None  # watch has looked once at least
    return told(watched.standing)
